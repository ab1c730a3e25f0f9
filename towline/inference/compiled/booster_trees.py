"""Readers of the trees in the model files of LightGBM, XGBoost and CatBoost.

Each library compares in its own way. The thresholds are converted so that a value goes to the left if it is at most the
threshold, both as float64:

- LightGBM compares float64 with ``<=``. It reads values up to 1e-35 as 0. If a feature had no missing values in
  training, it reads NaN as 0 too. A split of categories sends a set of codes to the left, and NaN to the right.
- XGBoost rounds values to float32 and compares with ``<``; it adds the leaves in float32. A split of categories sends a
  set of codes to the right.
- CatBoost rounds values to float32 and compares with ``>``. Its trees are oblivious: all nodes of a level have the same
  split, and the splits are the bits of a leaf's number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from towline.training.boosting.libraries import NATIVE_LEVELS, Booster, CatBoost, LightGBM, XGBoost

_ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold
_ALL_CODES = frozenset(range(NATIVE_LEVELS))
_BELOW_ZERO = float(np.nextafter(-_ZERO, -np.inf))


class NotCompiledError(Exception):
    """A part of the pipeline cannot be compiled; the message names it."""


@dataclass(frozen=True)
class Tree:
    """One tree: ``values`` are (nodes, width), the children of a leaf are -1.

    A node with ``codes`` splits a category: its codes go to the left, NaN as ``missing_left`` says; other nodes have
    None.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    values: np.ndarray
    codes: Sequence[frozenset[int] | None] = ()
    leaf: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaf", self.left < 0)


class BoostedTrees(NamedTuple):
    """Trees in the order in which they are added to ``start``, (outputs,); tree t adds to output t mod outputs."""

    start: np.ndarray
    trees: list[Tree]


def read_trees(booster: Booster) -> BoostedTrees:
    """The trees of a fitted booster.

    Raises:
        NotCompiledError: the model has a part that the plan cannot reproduce.
    """
    if isinstance(booster, LightGBM):
        return _read_lightgbm(booster.model_.decode())
    if isinstance(booster, XGBoost):
        return _read_xgboost(json.loads(booster.model_), booster)
    if isinstance(booster, CatBoost):
        return _read_catboost(json.loads(booster.model_))
    raise NotCompiledError(f"{type(booster).__name__} is not one of the boosters that are compiled")


def _read_lightgbm(text: str) -> BoostedTrees:
    head, *sections = text.partition("\nend of trees")[0].split("\nTree=")
    if "\naverage_output" in head:
        raise NotCompiledError("it averages its trees (boosting: rf)")
    outputs = int(dict(line.partition("=")[::2] for line in head.splitlines())["num_tree_per_iteration"])
    trees = [_lightgbm_tree(dict(line.partition("=")[::2] for line in section.splitlines())) for section in sections]
    return BoostedTrees(np.zeros(outputs), trees)


def _lightgbm_tree(entries: Mapping[str, str]) -> Tree:
    if entries.get("is_linear", "0") != "0":
        raise NotCompiledError("its leaves hold linear models")
    leaves = np.array(entries["leaf_value"].split(), dtype=np.float64)
    if len(leaves) == 1:
        return _constant_tree(leaves)
    threshold = np.array(entries["threshold"].split(), dtype=np.float64)
    kind = np.array(entries["decision_type"].split(), dtype=np.int64)
    missing = kind >> 2 & 3
    if (missing == 1).any():
        raise NotCompiledError("it reads zeros as missing (zero_as_missing)")
    codes = _lightgbm_codes(entries, threshold, kind)
    threshold = np.where(np.abs(threshold) > _ZERO, threshold, np.where(threshold >= 0, _ZERO, _BELOW_ZERO))
    inner = len(threshold)
    missing_left = np.where(missing == 0, threshold >= 0, kind & 2 > 0)
    children = [np.array(entries[f"{side}_child"].split(), dtype=np.int64) for side in ("left", "right")]
    left, right = (_pad(np.where(child < 0, inner + ~child, child), len(leaves), -1) for child in children)
    return Tree(
        feature=_pad(np.array(entries["split_feature"].split(), dtype=np.intp), len(leaves), 0),
        threshold=_pad(threshold, len(leaves), 0.0),
        left=left,
        right=right,
        missing_left=_pad(missing_left & (kind & 1 == 0), len(leaves), False),
        values=np.concatenate([np.zeros(inner), leaves])[:, None],
        codes=codes,
    )


def _lightgbm_codes(
    entries: Mapping[str, str], threshold: np.ndarray, kind: np.ndarray
) -> Sequence[frozenset[int] | None]:
    """The codes that each node sends to the left; the threshold of such a node numbers its bits in the tree."""
    if entries["num_cat"] == "0":
        return ()
    bounds = np.array(entries["cat_boundaries"].split(), dtype=np.int64)
    words = np.array(entries["cat_threshold"].split(), dtype=np.uint32)
    sets = [list_codes(words[begin:end]) for begin, end in pairwise(bounds.tolist())]
    codes = [sets[int(number)] if is_set else None for number, is_set in zip(threshold, kind & 1, strict=True)]
    return [*codes, *[None] * (len(codes) + 1)]  # the leaves follow


def list_codes(words: np.ndarray) -> frozenset[int]:
    """The codes whose bits are set in (n,) uint32 words."""
    return frozenset(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def _read_xgboost(document: Mapping[str, Any], booster: XGBoost) -> BoostedTrees:
    learner = document["learner"]
    kind = learner["gradient_booster"]["name"]
    if kind != "gbtree":
        raise NotCompiledError(f"the booster {kind!r}")
    if learner["learner_model_param"].get("num_target", "1") != "1":
        raise NotCompiledError("it has several targets")
    model = learner["gradient_booster"]["model"]
    start = booster.base_margins()
    of_output: list[list[Tree]] = [[] for _ in start]
    for tree, output in zip(model["trees"], model["tree_info"], strict=True):
        of_output[output].append(_xgboost_tree(tree))
    return BoostedTrees(start, [tree for group in zip(*of_output, strict=True) for tree in group])


def _xgboost_tree(tree: Mapping[str, Any]) -> Tree:
    if tree["tree_param"]["size_leaf_vector"] not in ("0", "1"):
        raise NotCompiledError("it has several targets")
    conditions = np.array(tree["split_conditions"], dtype=np.float32)
    left = np.array(tree["left_children"], dtype=np.int64)
    return Tree(
        feature=np.array(tree["split_indices"], dtype=np.intp),
        threshold=_largest_below(conditions),
        left=left,
        right=np.array(tree["right_children"], dtype=np.int64),
        missing_left=np.array(tree["default_left"]).astype(bool),
        values=np.where(left < 0, conditions, np.float32(0))[:, None],
        codes=_xgboost_codes(tree) if any(tree["split_type"]) else (),
    )


def _xgboost_codes(tree: Mapping[str, Any]) -> list[frozenset[int] | None]:
    """The codes that each node sends to the left: all that it does not send to the right."""
    codes: list[frozenset[int] | None] = [None] * len(tree["left_children"])
    lists = (tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"])
    for node, begin, size in zip(*lists, strict=True):
        codes[node] = _ALL_CODES - frozenset(tree["categories"][begin : begin + size])
    return codes


def _read_catboost(document: Mapping[str, Any]) -> BoostedTrees:
    if document["features_info"].get("categorical_features") or document.get("ctr_data"):
        raise NotCompiledError("its trees split statistics of categories, which CatBoost computes itself")
    if "oblivious_trees" not in document:
        raise NotCompiledError("its trees are not symmetric (grow_policy)")
    scale, bias = document["scale_and_bias"]
    if scale != 1:
        raise NotCompiledError(f"its trees are scaled by {scale}")
    features = document["features_info"]["float_features"]
    position = {feature["feature_index"]: feature["flat_feature_index"] for feature in features}
    upwards = {feature["feature_index"] for feature in features if feature["nan_value_treatment"] == "AsTrue"}
    trees = [tree for raw in document["oblivious_trees"] for tree in _catboost_trees(raw, position, upwards, len(bias))]
    if any(bias):  # CatBoost adds it after the trees
        trees += [_constant_tree(np.array([value], dtype=np.float64)) for value in bias]
    return BoostedTrees(np.zeros(len(bias)), trees)


def _catboost_trees(raw: Mapping[str, Any], position: Mapping[int, int], upwards: set[int], outputs: int) -> list[Tree]:
    """An oblivious tree, as one tree for each output; its last split is the root."""
    splits: Sequence[Mapping[str, Any]] = raw["splits"][::-1]
    if any(split["split_type"] != "FloatFeature" for split in splits):
        raise NotCompiledError("its trees split on combinations of categories")
    leaves = np.array(raw["leaf_values"], dtype=np.float64).reshape(2 ** len(splits), outputs)
    if not splits:
        return [_constant_tree(leaves[:, output]) for output in range(outputs)]
    borders = np.array([split["border"] for split in splits], dtype=np.float32)
    level = np.repeat(np.arange(len(splits)), 2 ** np.arange(len(splits)))
    inner, feature = len(level), [split["float_feature_index"] for split in splits]
    left = _pad(2 * np.arange(inner) + 1, len(leaves), -1)
    return [
        Tree(
            feature=_pad(np.array([position[index] for index in feature], dtype=np.intp)[level], len(leaves), 0),
            threshold=_pad(_largest_below(np.nextafter(borders, np.float32(np.inf)))[level], len(leaves), 0.0),
            left=left,
            right=np.where(left < 0, -1, left + 1),
            missing_left=_pad(np.array([index not in upwards for index in feature])[level], len(leaves), False),
            values=np.concatenate([np.zeros(inner), leaves[:, output]])[:, None],
        )
        for output in range(outputs)
    ]


def _constant_tree(values: np.ndarray) -> Tree:
    """A tree of one leaf."""
    none, zero = np.array([-1]), np.zeros(1)
    return Tree(np.zeros(1, dtype=np.intp), zero, none, none, np.zeros(1, dtype=bool), values[:, None])


def _pad(nodes: np.ndarray, leaves: int, value: float) -> np.ndarray:
    """The entries of the inner nodes, followed by those of the leaves."""
    return np.concatenate([nodes, np.full(leaves, value, dtype=nodes.dtype)])


def _largest_below(thresholds: np.ndarray) -> np.ndarray:
    """For each float32 the largest float64 that is rounded to a smaller float32."""
    with np.errstate(over="ignore"):
        lower = np.nextafter(thresholds, np.float32(-np.inf))
        middle = (lower.astype(np.float64) + thresholds.astype(np.float64)) / 2
        rounds_down = middle.astype(np.float32) < thresholds
    return np.asarray(np.where(rounds_down, middle, np.nextafter(middle, -np.inf)))
