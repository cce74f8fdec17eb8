"""Which way a metric gets better, by its name."""

# Whole words of the metric's name, so that "map" is not found in "bitmap".
BETTER_HIGH = {
    "accuracy", "precision", "recall", "f1", "auc", "auroc", "pearson", "spearman", "matthews", "map", "knn", "probe",
    "top1", "top5", "r1", "r5", "r10", "top",
}  # fmt: skip
# Whole names whose words say something else alone.
WHOLE = {"cross_entropy": "min", "median_rank": "min", "explained_variance": "max"}
BETTER_LOW = {"loss", "perplexity", "error", "mse", "mae", "rmse", "nats", "bits"}


def direction(metric: str) -> str | None:
    """Return "max" or "min" for a metric such as "validation/mlm/accuracy", or null if its name does not tell."""
    if (whole := metric.rpartition("/")[2]) in WHOLE:
        return WHOLE[whole]
    # The last part says most: "validation/probe/loss" is a loss.
    for part in reversed(metric.lower().split("/")):
        words = set(part.replace("-", "_").replace(".", "_").replace("@", "").split("_"))
        if words & BETTER_LOW:
            return "min"
        if words & BETTER_HIGH:
            return "max"
    return None


def is_better(value: float, than: float, way: str) -> bool:
    """Say whether `value` beats `than`; NaN never does."""
    return value < than if way == "min" else value > than
