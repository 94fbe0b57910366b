"""Text cut into windows for next-character prediction."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.jsonio import parse_json
from fedjax_het.data.checks import check_fraction, check_whole
from fedjax_het.data.sources.files import DataDir, check_digest, folder, read_bytes, read_text
from fedjax_het.data.sources.raw import RawData

# All symbols of the two files, in code-point order; a symbol's index is its token.
TINY_VOCABULARY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ROLES_VOCABULARY = (
    "\n !\"&'(),-./0124568:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz{"
)
# The plays in `shakespeare` of which passages are in tinyshakespeare.
TINY_PLAYS = (
    "coriolanus",
    "henry_vi_part_3",
    "measure_for_measure",
    "richard_ii",
    "richard_iii",
    "romeo_and_juliet",
    "taming_of_the_shrew",
    "tempest",
    "winters_tale",
)
_TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_ROLES_SHA256 = "2446a05ea4c6f9c75017b59acaeaf67574a7ae7854a9f62ff61ba9f2e5ffc2fc"


def tokenise(text: str, vocabulary: str) -> np.ndarray:
    """Index in `vocabulary` of every symbol, int32[len(text)].

    Raises:
      InputError: for symbols outside the vocabulary.
    """
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known = np.frombuffer(vocabulary.encode("utf-32-le"), np.uint32)
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known[order], code), len(known) - 1)
    token = order[place]
    unknown = np.unique(code[known[token] != code])
    require(
        unknown.size == 0,
        f"symbols {''.join(map(chr, unknown[:20]))!r}",
        f"must be among the {len(vocabulary)} of the vocabulary",
        "add them to `vocabulary`, or remove them from the text",
    )
    return token.astype(np.int32)


def windows(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive windows as inputs, and as labels the same windows shifted by one symbol.

    Args:
      tokens: tokens of one text, int32[M].
      length: number T of symbols per window.

    Returns:
      Pair `(x, y)`, int32[K, T] each, with K = floor((M - 1) / T): y[t] is predicted from x[..t]. A
      rest shorter than T is left out.
    """
    count = max(len(tokens) - 1, 0) // length
    x, y = tokens[: count * length], tokens[1 : count * length + 1]
    return x.reshape(count, length), y.reshape(count, length)


def _cut(
    name: str,
    texts: Sequence[str],
    owners: Sequence[str] | None,
    vocabulary: str,
    window: int,
    test_fraction: float,
) -> RawData:
    """Cuts every text into windows; the last `test_fraction` of each text is its test set."""
    check_whole(window, "window", "80 symbols is customary")
    check_fraction(test_fraction, "test_fraction")
    require(
        len(set(vocabulary)) == len(vocabulary) > 1,
        f"vocabulary of {len(vocabulary)} symbols, {len(set(vocabulary))} different",
        "must hold at least 2 symbols, each once",
        "join the sorted set of the symbols of the text",
    )
    tokens = tokenise("".join(texts), vocabulary)
    pieces = np.split(tokens, np.cumsum([len(text) for text in texts])[:-1])
    train, test, train_count, test_count = [], [], [], []
    for piece in pieces:
        x, y = windows(piece, window)
        cut = len(x) - int(test_fraction * len(x))
        train.append((x[:cut], y[:cut]))
        test.append((x[cut:], y[cut:]))
        train_count.append(cut)
        test_count.append(len(x) - cut)
    for split, count in (("training", train_count), ("test", test_count)):
        require(
            sum(count) > 0,
            f"window = {window}, test_fraction = {test_fraction}",
            f"leave no {split} window in texts of at most {max(map(len, texts))} symbols",
            "use shorter windows or another fraction",
        )
    ids = None if owners is None else np.asarray(owners)
    return RawData(
        name=name,
        x=np.concatenate([x for x, _ in train]),
        y=np.concatenate([y for _, y in train]),
        test_x=np.concatenate([x for x, _ in test]),
        test_y=np.concatenate([y for _, y in test]),
        num_classes=len(vocabulary),
        classes=tuple(vocabulary),
        clients=None if ids is None else np.repeat(ids, train_count),
        test_clients=None if ids is None else np.repeat(ids, test_count),
    )


def shakespeare(
    data_dir: DataDir = None,
    window: int = 80,
    test_fraction: float = 0.2,
    vocabulary: str = ROLES_VOCABULARY,
    exclude: Sequence[str] = (),
    verify: bool = True,
) -> RawData:
    """Shakespeare's plays by role: 1,011 natural clients, 4.0 million characters, 79 symbols.

    A role's speeches are joined by newlines and cut into windows. The last `test_fraction` of its
    windows (rounded down) are its test set, so no training text comes after the test text. Training
    and test text of a role share the one symbol at the cut.

    Args:
      data_dir: directory with `shakespeare_roles.jsonl.gz` (one object per line: play, role,
        speeches), or with a folder `shakespeare` that holds it.
      window: number T of symbols per training sample.
      test_fraction: share of each role's windows in the test set.
      vocabulary: all symbols, in the order of their tokens.
      exclude: names of plays to leave out, e.g. `TINY_PLAYS` for models that know tinyshakespeare.
      verify: whether content other than the published one is refused.
    """
    place = folder(data_dir, "shakespeare", "put shakespeare_roles.jsonl.gz there")
    path = place.find("shakespeare_roles.jsonl.gz", "shakespeare_roles.jsonl")
    data = read_bytes(place, path)
    if verify:
        check_digest(place, path, _ROLES_SHA256, data)
    plays, texts, owners = [], [], []
    for number, line in enumerate(data.splitlines(), 1):
        row = parse_json(line, f"{path}, line {number}", place.again)
        row = row if isinstance(row, dict) else {}
        play, role, speeches = (row.get(name) for name in ("play", "role", "speeches"))
        # Joining a text in place of a list would put a newline between its letters.
        spoken = speeches if isinstance(speeches, list) else [None]
        if not all(isinstance(part, str) for part in (play, role, *spoken)):
            raise place.broken(
                path,
                f"line {number} is not an object with play, role and speeches, a list of texts",
            )
        plays.append(str(play))
        owners.append(f"{play}/{role}")
        texts.append("\n".join(map(str, spoken)))
    if not texts:
        raise place.broken(path, "no lines")
    for play in exclude:
        require_known(play, sorted(set(plays)), "play to exclude")
    kept = [i for i, play in enumerate(plays) if play not in exclude]
    require(bool(kept), f"exclude = {list(exclude)}", "leaves no play", "keep one or more")
    texts, owners = [texts[i] for i in kept], [owners[i] for i in kept]
    return _cut("shakespeare", texts, owners, vocabulary, window, test_fraction)


def tinyshakespeare(
    data_dir: DataDir = None,
    window: int = 80,
    test_fraction: float = 0.1,
    vocabulary: str = TINY_VOCABULARY,
    verify: bool = True,
) -> RawData:
    """Tiny Shakespeare: one text of 1,115,394 characters, 65 symbols; its end is the test set.

    It has no natural clients; `partition.contiguous(n)` gives each client a passage.

    Args:
      data_dir: directory with `tinyshakespeare.txt`, or with a folder `tinyshakespeare` that holds
        it.
      window: number T of symbols per training sample.
      test_fraction: share of the windows, taken from the end, in the test set.
      vocabulary: all symbols, in the order of their tokens.
      verify: whether content other than the published one is refused.
    """
    place = folder(data_dir, "tinyshakespeare", "put tinyshakespeare.txt there")
    path = place.find("tinyshakespeare.txt", "tinyshakespeare.txt.gz")
    data = read_bytes(place, path)
    if verify:
        check_digest(place, path, _TINY_SHA256, data)
    text = read_text(place, path, data)
    return _cut("tinyshakespeare", [text], None, vocabulary, window, test_fraction)
