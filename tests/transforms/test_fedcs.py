"""FedCS against a schedule by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selections import candidates, selection

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.plan import Timing
from fedjax_het.transforms.select.fedcs import scheduled


def test_fedcs_schedules_by_hand():
    timing = Timing(
        download_s=np.asarray([1.0, 1.0, 3.0, 1.0]),
        compute_s=np.asarray([4.0, 1.0, 1.0, 10.0]),
        upload_s=np.asarray([2.0, 2.0, 1.0, 1.0]),
        bytes_down=np.zeros(4),
        bytes_up=np.zeros(4),
        flops=np.zeros(4),
    )
    # Client 1 ends at 1 + 1 + 2 = 4. Then client 2: download 3, uploads after 3, ends at 3 + 4 = 7;
    # client 0 computes until 4, ends at 1 + 6 = 7, and comes first as the lower id. Client 2 next:
    # 3 + 6 + 1 = 10. Client 3: 3 + 10 + 1 = 14.
    assert scheduled(timing, 4, 14.0).tolist() == [1, 0, 2, 3]
    assert scheduled(timing, 4, 13.9).tolist() == [1, 0, 2]
    assert scheduled(timing, 4, 9.0).tolist() == [1, 0]
    assert scheduled(timing, 1, 9.0).tolist() == [1]
    assert scheduled(timing, 4, 3.0).size == 0


@given(
    st.lists(st.tuples(*[st.sampled_from([0.1, 0.2, 0.3, 1.0, 2.5])] * 3), max_size=12),
    st.integers(0, 14),
    st.sampled_from([0.5, 3.0, 8.0, np.inf]),
)
def test_fedcs_adds_the_client_that_lengthens_the_round_least(told, wanted, deadline_s):
    down, work, up = columns = np.asarray(told, np.float64).reshape(-1, 3).T
    left, expected, slowest_s, uploaded_s = set(range(len(told))), [], 0.0, 0.0
    while left and len(expected) < wanted:
        end_s = {i: max(slowest_s, down[i]) + (max(work[i], uploaded_s) + up[i]) for i in left}
        best = min(left, key=lambda i: (end_s[i], i))
        if end_s[best] > deadline_s:
            break
        slowest_s, uploaded_s = max(slowest_s, down[best]), max(work[best], uploaded_s) + up[best]
        expected.append(best)
        left.remove(best)
    timing = Timing(*columns, *np.zeros((3, len(told))))
    assert scheduled(timing, wanted, deadline_s).tolist() == expected
    assert timing.upload_s.tolist() == up.tolist()


def test_fedcs_asks_some_clients_and_needs_one_in_time():
    choose = selection(fh.select.fedcs(deadline_s=5.0, asked=3)).choose
    duration_s = [3.0, 1.0, 2.0, 9.0]
    found = {tuple(choose((), candidates(2, duration_s=duration_s, seed=s))[0]) for s in range(40)}
    # Asked {0,1,2}: 1, 2; {0,1,3}: 1, 0; {0,2,3}: 2, 0; {1,2,3}: 1, 2. Uploads take no time.
    assert found == {(1, 2), (1, 0), (2, 0)}
    choose = selection(fh.select.fedcs(deadline_s=0.5)).choose
    with pytest.raises(InputError, match=r"deadline_s = 0.5.*less than the 1 s"):
        choose((), candidates(2, duration_s=duration_s))
