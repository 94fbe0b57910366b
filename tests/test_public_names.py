"""What users may rely on: the names, that each is explained, and that each method has one.

A change of `PUBLIC` is a change for users: edit the list below, and say so in `CHANGELOG.md`.
"""

import importlib
import inspect

import pytest

import fedjax_het as fh

PUBLIC = {
    "fedjax_het": [
        "Aggregator",
        "Algorithm",
        "ClientResult",
        "InputError",
        "Merged",
        "Plan",
        "Problem",
        "Result",
        "Route",
        "RunOptions",
        "SINKS",
        "SavedModel",
        "Schedule",
        "Simulation",
        "Sweep",
        "TrainingOptions",
        "Variables",
        "__version__",
        "aggregation",
        "algorithms",
        "attack",
        "clock",
        "compose",
        "compress",
        "contract",
        "data",
        "export",
        "fleet",
        "load_model",
        "local",
        "masks",
        "models",
        "objectives",
        "pace",
        "privacy",
        "report",
        "robust",
        "select",
        "selection",
        "server",
        "simulate",
        "sweep",
        "transforms",
    ],
    "fedjax_het.algorithms": [
        "ALGORITHMS",
        "SHARED_OPTIONS",
        "TRAINING_OPTIONS",
        "adel",
        "adel_drop",
        "adel_wait",
        "build",
        "default_options",
        "depthfl",
        "drop_stragglers",
        "dtfl",
        "fedadam",
        "fedasync",
        "fedat",
        "fedavg",
        "fedbuff",
        "feddrop",
        "feddyn",
        "fedel",
        "fedfix",
        "fedgkt",
        "fednova",
        "fedopt",
        "fedpmt",
        "fedprox",
        "fedrolex",
        "fedyogi",
        "fiarse",
        "fjord",
        "heterofl",
        "nested_mask_sync",
        "option_names",
        "prfl",
        "prfl_fedasyn",
        "prfl_fedfix",
        "pyramidfl",
        "register",
        "resolved_options",
        "salf",
        "scaffold",
        "scalefl",
        "splitfed",
        "sub_fedavg",
        "timelyfl",
    ],
    "fedjax_het.contract": [
        "Aggregator",
        "Algorithm",
        "Axes",
        "Buffers",
        "Candidates",
        "Chunk",
        "ClientResult",
        "Closing",
        "Draw",
        "Flight",
        "Interruptions",
        "Known",
        "Layout",
        "Memory",
        "Merged",
        "Pace",
        "Paces",
        "Plan",
        "Question",
        "Report",
        "Route",
        "Schedule",
        "Seen",
        "Selector",
        "Situation",
        "Span",
        "Status",
        "SubModels",
        "Task",
        "Term",
        "Timing",
        "Upload",
        "Variables",
        "Widths",
        "aggregation",
        "clock",
        "masked_mean",
        "masks",
        "normalised_mean",
        "plain_mean",
        "selection",
        "staleness",
    ],
    "fedjax_het.data": [
        "Batch",
        "DeviceData",
        "FederatedData",
        "PARTITIONERS",
        "Pipeline",
        "RawData",
        "SOURCES",
        "contiguous",
        "dirichlet",
        "flip_labels",
        "from_arrays",
        "gather",
        "iid",
        "label_limited",
        "load",
        "load_federated",
        "natural",
        "partitioner",
        "prepare",
        "quantity_skew",
        "read_csv",
        "read_hub",
        "read_image_folder",
        "read_jsonl",
        "read_leaf",
        "read_mapping",
        "read_npy",
        "read_npz",
        "read_parquet",
        "read_text_matrix",
        "read_tff_h5",
        "shards",
        "steps_per_epoch",
    ],
    "fedjax_het.export": ["Apps", "flower"],
    "fedjax_het.fleet": [
        "Availability",
        "BandwidthTraces",
        "CostTable",
        "FLEETS",
        "Fleet",
        "MeasuredProfile",
        "TraceLink",
        "adel",
        "always",
        "build",
        "cost_table",
        "dtfl",
        "exponential",
        "fedel",
        "format_table",
        "from_intervals",
        "from_traces",
        "measure",
        "phones",
        "prfl",
        "price",
        "read_csv",
        "read_fedscale",
        "read_json",
        "speed_groups",
        "synthetic",
        "task_joules",
        "uniform",
        "with_energy",
        "with_measured",
    ],
    "fedjax_het.local": [
        "Privacy",
        "distance_correlation",
        "shuffle_channels",
        "shuffle_patches",
    ],
    "fedjax_het.models": [
        "Block",
        "BlockModel",
        "MODELS",
        "build",
        "ensemble",
        "flax_block",
        "freeze",
        "from_flax",
        "layout_of",
        "lora",
        "sub_network",
        "truncated",
        "with_compute_dtype",
        "with_exits",
    ],
    "fedjax_het.objectives": [
        "OBJECTIVES",
        "Metric",
        "Objective",
        "build",
        "classification",
        "multilabel",
        "next_token",
        "regression",
        "segmentation",
    ],
    "fedjax_het.report": [
        "Comparison",
        "Population",
        "RunRecord",
        "RunWriter",
        "compare",
        "time_to",
        "write_report",
    ],
    "fedjax_het.simulation": [
        "Evaluator",
        "Result",
        "RunOptions",
        "SINKS",
        "SavedModel",
        "Simulation",
        "Sink",
        "load_model",
        "simulate",
    ],
    "fedjax_het.sweeps": ["Sweep", "SweepOptions", "Trial", "sweep"],
    "fedjax_het.transforms": [
        "Nested",
        "Transformation",
        "attack",
        "compose",
        "compress",
        "nested",
        "on_plateau",
        "pace",
        "privacy",
        "robust",
        "select",
        "server",
    ],
    "fedjax_het.transforms.pace": [
        "PACES",
        "arrivals",
        "barrier",
        "buffer",
        "deadline",
        "first",
        "window",
    ],
    "fedjax_het.transforms.compress": [
        "COMPRESSIONS",
        "qsgd",
        "random_k",
        "sign",
        "top_k",
        "uniform",
    ],
    "fedjax_het.transforms.privacy": [
        "PRIVACY",
        "adaptive_clip",
        "epsilon",
        "gaussian",
        "secure_aggregation",
    ],
    "fedjax_het.transforms.attack": ["ATTACKS", "noise", "scaled", "sign_flip"],
    "fedjax_het.transforms.robust": ["ROBUST", "krum", "median", "norm_bound", "trimmed_mean"],
    "fedjax_het.transforms.select": [
        "SELECTIONS",
        "fedcs",
        "oort",
        "power_of_choice",
        "tifl",
        "uniform",
        "weighted",
    ],
    "fedjax_het.transforms.server": [
        "FEDOPT",
        "SERVER",
        "normalised",
        "optimizer",
        "scale_by_fedopt",
    ],
}

NAMES = [(room, name) for room, names in PUBLIC.items() for name in names]


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names_are_the_listed_ones(room):
    names = set(importlib.import_module(room).__all__)
    added, gone = sorted(names - set(PUBLIC[room])), sorted(set(PUBLIC[room]) - names)
    assert not added, f"list these in PUBLIC[{room!r}] and in CHANGELOG.md"
    assert not gone, f"take these from PUBLIC[{room!r}] and tell CHANGELOG.md"


def explained(thing):
    """Whether a function, class or module has a docstring of its own; constants need none."""
    if not (inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing)):
        return True
    said = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    # Dataclasses and named tuples are given their signature where they have no docstring.
    return bool(said) and not said.startswith(f"{thing.__name__}(")


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_room_has_a_docstring(room):
    assert explained(importlib.import_module(room))


@pytest.mark.parametrize(("room", "name"), NAMES, ids=[f"{room}.{name}" for room, name in NAMES])
def test_every_public_name_is_there_and_has_a_docstring(room, name):
    assert explained(getattr(importlib.import_module(room), name))


def test_a_class_without_a_docstring_is_noticed():
    class Bare:
        pass

    class Signature(Bare):
        __doc__ = "Signature(x)"

    assert not explained(Bare)
    assert not explained(Signature)
    assert not explained(lambda: None)
    assert explained({"a": 1})


def test_the_name_of_a_method_is_its_function():
    for name, factory in fh.algorithms.ALGORITHMS.items():
        assert getattr(fh.algorithms, name) is factory, name
