"""The headline says what the runs show, and no more."""

import pytest

from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.results import MethodResult, TargetResult, summarise
from fedjax_het.report.units import Spread, spread
from fedjax_het.report.verdict import headline, run_headline, tied

ACCURACY = MetricInfo()


def method(name, *per_target, seeds=3, best=0.93, metric=ACCURACY, goals=(0.8, 0.9, 0.95)):
    """A method from its times to each target (one tuple of times per target, None: not reached)."""
    targets = tuple(
        TargetResult(
            goal=goals[i],
            reached=sum(t is not None for t in times),
            seeds=seeds,
            virtual_s=spread(times),
            wall_s=None,
            step=None,
            bytes_up=None,
            speed_up=None,
            best=best,
        )
        for i, times in enumerate(per_target)
    )
    value = Spread((best,) * seeds)
    return MethodResult(name, metric, tuple(range(seeds)), targets, value, value, None, {}, None, 0)


A = (20.0, 21.0, 22.0)
B = (10.0, 10.5, 11.0)
NEVER = (None, None, None)


def test_a_win_names_the_times_and_the_ratio():
    text = headline([method("FedAvg", A), method("FedPMT", B)])
    assert text == (
        "FedPMT reached 80 % test accuracy first, after 10.5 ± 0.5 s of virtual time; "
        "FedAvg took 21.0 ± 1.0 s, 2.00× as long."
    )


def test_a_loss_of_the_new_method_is_said():
    text = headline([method("FedAvg", B), method("FedPMT", A)])
    assert text == (
        "The reference, FedAvg, reached 80 % test accuracy first, after 10.5 ± 0.5 s of virtual "
        "time; FedPMT took 21.0 ± 1.0 s, 2.00× as long."
    )


def test_overlapping_intervals_are_a_tie():
    text = headline([method("FedAvg", (10.0, 12.0, 14.0)), method("FedPMT", (9.0, 11.0, 13.0))])
    assert text == (
        "A tie: FedPMT (11.0 ± 2.0 s) and FedAvg (12.0 ± 2.0 s) reached 80 % test accuracy "
        "within the spread over seeds."
    )
    assert "first" not in text


def test_a_tie_ahead_of_others_says_whom_they_are_compared_with():
    text = headline([method("A", B), method("B", B), method("C", A)])
    assert text.startswith("A tie: A (10.5 ± 0.5 s) and B (10.5 ± 0.5 s) reached")
    assert "at practically the same virtual time; C took 21.0 ± 1.0 s, 2.00× as long as A." in text


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1.0, 3.0), (2.0, 4.0), True),
        ((1.0, 1.1), (2.0, 2.1), False),
        ((5.0,), (5.0,), True),
        ((5.0,), (5.02,), True),
        ((5.0,), (5.03,), False),
        ((5.0,), (4.0, 7.0), True),
    ],
)
def test_tied(a, b, expected):
    assert tied(Spread(a), Spread(b)) is expected
    assert tied(Spread(b), Spread(a)) is expected


def test_nobody_reached_it():
    text = headline([method("FedAvg", NEVER, best=0.71), method("FedPMT", NEVER, best=0.7999999)])
    assert text == ("No method reached 80 %. The best accuracy was 79.99 %, by FedPMT.")


def test_only_one_reached_it():
    text = headline([method("FedAvg", NEVER, best=0.7), method("FedPMT", B)])
    assert text.endswith("10.5 ± 0.5 s of virtual time. FedAvg did not reach it (best 70.00 %).")
    assert text.startswith("FedPMT reached 80 % test accuracy first")


def test_a_method_that_failed_in_some_seeds_is_not_ranked():
    text = headline([method("FedAvg", A), method("Fast", (1.0, None, 1.2))])
    assert text == (
        "The reference, FedAvg, reached 80 % test accuracy first of those that did so with every "
        "seed, after 21.0 ± 1.0 s of virtual time. Fast reached it in only 2 of 3 seeds (there "
        "after 1.10 ± 0.14 s), so it is not ranked."
    )


def test_no_method_reached_it_with_every_seed():
    text = headline([method("FedAvg", (5.0, None, None)), method("FedPMT", NEVER)])
    assert text.startswith("80 % was reached in some seeds only: FedAvg in 1 of 3 (after 5.00 s).")
    assert "first" not in text


def test_the_hardest_target_that_was_reached_counts_and_harder_ones_are_mentioned():
    fast_start = method("Hare", (1.0, 1.1, 1.2), A, NEVER)
    steady = method("Tortoise", (2.0, 2.1, 2.2), B, (90.0, None, None))
    text = headline([fast_start, steady])
    assert text.startswith("Tortoise reached 90 % test accuracy first")
    assert text.endswith("95 % was reached in some seeds only: Tortoise in 1 of 3.")
    assert headline([method("A", A, NEVER), method("B", B, NEVER)]).endswith(
        "No method reached 90 %."
    )


def test_one_seed_is_admitted():
    text = headline([method("FedAvg", (20.0,), seeds=1), method("FedPMT", (10.0,), seeds=1)])
    assert "after 10.0 s of virtual time; FedAvg took 20.0 s, 2.00× as long." in text
    assert text.endswith("Each method ran with one seed, so the spread is not known.")
    assert "±" not in text
    text = headline([method("FedAvg", A), method("FedPMT", (10.0,), seeds=1)])
    assert text.endswith("FedPMT ran with one seed, so the spread is not known.")


def test_many_methods_are_summed_up():
    times = [(10.0 * i, 10.0 * i + 0.1, 10.0 * i + 0.2) for i in range(1, 9)]
    text = headline([method(f"m{i}", t) for i, t in enumerate(times)])
    assert text.startswith("The reference, m0, reached 80 % test accuracy first")
    assert text.endswith("; m1 took 20.1 ± 0.1 s, 1.99× as long; 6 others took 30.1 ± 0.1 s to "
                         "80.1 ± 0.1 s, 2.98× to 7.93× as long.")  # fmt: skip


def test_a_target_that_the_untrained_model_meets_gives_no_ratio():
    text = headline([method("A", (0.0, 0.0, 0.0)), method("B", B)])
    assert text.endswith(" of virtual time; B took 10.5 ± 0.5 s.")


def test_without_targets_the_best_accuracy_is_reported():
    text = headline([method("A", best=0.7), method("B", best=0.9)])
    assert text == "No target was set; the best accuracy was 90.00 %, by B."


MAE = MetricInfo("mae", higher_is_better=False, share=False)


def regression(name, *per_target, best=2.0, seeds=3):
    return method(name, *per_target, best=best, seeds=seeds, metric=MAE, goals=(3.5, 3.2, 3.0))


def test_an_error_is_reached_from_above():
    text = headline([regression("FedAvg", A, NEVER), regression("FedPMT", B, NEVER)])
    assert text == (
        "FedPMT reached a test MAE of 3.5 first, after 10.5 ± 0.5 s of virtual time; FedAvg took "
        "21.0 ± 1.0 s, 2.00× as long. No method reached MAE 3.2."
    )
    text = headline([regression("A", A), regression("B", NEVER, best=3.500001)])
    assert text.endswith("B did not reach it (best 3.501).")
    text = headline([regression("A", NEVER, best=4.0), regression("B", NEVER, best=3.7)])
    assert text == "No method reached MAE 3.5. The best MAE was 3.700, by B."


def test_the_headline_of_one_regression(two_regressions):
    record = two_regressions["FedAvg"][0]
    assert run_headline(record, (3.0, 2.5, 1.0)) == (
        "FedAvg (seed 0) reached a test MAE of 2.5 after 4.52 min of virtual time, at server step "
        f"11; its best was {record.best:.3f}. It did not reach MAE 1."
    )
    assert run_headline(record, (1.5, 1.0)) == (
        f"FedAvg (seed 0) did not reach a test MAE of 1.5 or 1; its best was {record.best:.3f}."
    )
    assert run_headline(record, ()) == (
        f"FedAvg (seed 0) ended at a test MAE of {record.final:.3f}; its best was "
        f"{record.best:.3f}."
    )


def test_from_records(two_methods):
    text = headline(summarise(two_methods, [0.9]))
    assert text.startswith("FedPMT reached 90 % test accuracy first, after 108 ± 6 s")
    swapped = {"FedPMT": two_methods["FedAvg"], "FedAvg": two_methods["FedPMT"]}
    text = headline(summarise(swapped, [0.9]))
    assert text.startswith("FedAvg reached 90 % test accuracy first")


def test_the_headline_of_one_run(make_run):
    record = make_run("FedPMT", 4)
    assert run_headline(record, (0.8, 0.9)).startswith("FedPMT (seed 4) reached 90 % test accuracy")
    assert "It did not reach 99.9 %." in run_headline(record, (0.8, 0.999))
    assert run_headline(record, (0.999,)).startswith("FedPMT (seed 4) did not reach 99.9 % test")
    assert run_headline(record, ()).startswith("FedPMT (seed 4) ended at ")
