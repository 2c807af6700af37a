-- Shared by the views. Macros stand in the database, so that every DuckDB client can read the views.

-- 1.4826 scales a median absolute deviation to the standard deviation of a normal distribution. The lower limit of 0.01
-- keeps small differences between nearly identical wells or plates from looking large.
CREATE MACRO aggregates.robust_deviation(value, middle, spread) AS
    (value - middle) / greatest(1.4826 * spread, 0.01);

-- up or down if a sign test over wells is significant at 5% (normal approximation).
CREATE MACRO aggregates.sign_test(wells_up, wells_down, up, down) AS
    CASE
        WHEN abs(wells_up - wells_down) - 1 < 1.96 * sqrt(wells_up + wells_down) THEN 'no clear difference'
        WHEN wells_up > wells_down THEN up
        ELSE down
    END;
