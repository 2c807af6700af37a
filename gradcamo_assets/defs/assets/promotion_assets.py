"""Asset ``promotion``: promote the challenger if the evidence logged with both versions passes all checks."""

import dagster as dg

from gradcamo_assets.defs.assets.model_assets import trained_model
from gradcamo_assets.defs.each_field import markdown_reasons
from gradcamo_assets.defs.launchpad import override_settings, settings_metadata, with_section_fields
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.training.model_registry import CHALLENGER, CHAMPION
from gradcamo_assets.training.promotion_rule import CHECKS, PromotionConfig


@with_section_fields(PromotionConfig)
class PromotionThresholds(dg.Config):
    """Thresholds for promotion. Empty fields have the values of [promotion] in gradcamo.toml."""


@dg.asset(
    deps=[trained_model],
    group_name="models",
    kinds={"mlflow"},
    check_specs=[dg.AssetCheckSpec(name, asset="promotion", description=text) for name, text in CHECKS.items()],
)
@explain_storage_errors
def promotion(
    context: dg.AssetExecutionContext, platform: Platform, config: PromotionThresholds
) -> dg.MaterializeResult:
    """The alias champion, moved to the challenger if all checks pass. Rescoring follows automatically."""
    from gradcamo_assets.training.promotion import promote
    from gradcamo_assets.training.promotion_rule import judge_challenger, read_evidence

    lake, registry = platform.lake, platform.registry
    challenger, champion = registry.by_alias(CHALLENGER), registry.by_alias(CHAMPION)
    if challenger is None:
        raise GradcamoError(
            "there is no challenger", "Launch train_model, or register a model with `gradcamo register`."
        )
    thresholds = override_settings(platform.settings.promotion, config)
    answers = judge_challenger(
        read_evidence(registry, challenger), read_evidence(registry, champion) if champion else None, thresholds
    )
    reasons = {answer.name: answer.text for answer in answers if not answer.passed}
    if champion == challenger:
        outcome = f"Version {challenger.version} is already the champion."
    elif reasons:
        by_hand = f"To promote it anyway: gradcamo promote {challenger.version} --reason ..."
        outcome = f"Refused: {' '.join(f'{name}: {text}' for name, text in reasons.items())} {by_hand}"
    else:
        reason = " ".join(answer.text for answer in answers)
        modules = platform.settings.encoders.modules
        promote(lake, registry, challenger, by=f"run {context.run.run_id}", reason=reason, modules=modules)
        outcome = f"Version {challenger.version} is the new champion."
    context.log.info(outcome)
    return dg.MaterializeResult(
        metadata={
            "outcome": outcome,
            **settings_metadata(promotion=thresholds),
            "challenger": challenger.version,
            "champion_before": champion.version if champion else "none",
            "answers": dg.MetadataValue.md(markdown_reasons({answer.name: answer.text for answer in answers})),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=answer.name,
                passed=answer.passed,
                description=answer.text,
                metadata={"challenger": challenger.version, "champion": champion.version if champion else "none"},
            )
            for answer in answers
        ],
    )
