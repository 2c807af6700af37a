for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const header = button.parentElement, table = header.closest("table"), body = table.tBodies[0];
  const descending = header.getAttribute("aria-sort") === "ascending", isNumeric = header.classList.contains("n");
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const compare = isNumeric ? (a, b) => parseFloat(a) - parseFloat(b)
    : (a, b) => a.localeCompare(b, "en", {numeric: true});
  const rows = [...body.rows].map(row => [row.cells[header.cellIndex].textContent.trim(), row]);
  rows.sort(([a], [b]) => (a === "–") - (b === "–") || (descending ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
});
const plate = document.querySelector(".plate");
if (plate) {
  const details = document.getElementById("well"), wells = [...plate.querySelectorAll("td[title]")];
  const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]};
  const show = event => { if (event.target.title) details.textContent = event.target.title; };
  if (wells.length) wells[0].tabIndex = 0;
  plate.addEventListener("pointermove", show);
  plate.addEventListener("focusin", show);
  plate.addEventListener("keydown", event => {
    if (!step[event.key]) return;
    event.preventDefault();
    const [down, right] = step[event.key], rows = plate.rows;
    let row = event.target.parentElement.rowIndex, column = event.target.cellIndex, next;
    do next = rows[row += down]?.cells[column += right]; while (next && !next.title);
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
