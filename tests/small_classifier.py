"""How well a small classifier tells the answer of a pretext task from what should carry no signal."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lit_pretrain.objectives.vision_objective import Shortcut


def accuracy(shortcut: Shortcut) -> float:
    """Accuracy on the last third of the samples, trained on the others."""
    features, labels = shortcut.features.numpy(), shortcut.labels.numpy()
    assert set(labels.tolist()) == set(range(shortcut.classes))
    split = 2 * len(labels) // 3
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return classifier.fit(features[:split], labels[:split]).score(features[split:], labels[split:])
