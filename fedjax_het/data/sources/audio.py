"""Speech Commands, with speakers as natural clients."""

import numpy as np

from fedjax_het.common.arrays import Layout, read_arrays
from fedjax_het.common.errors import require_known
from fedjax_het.data.checks import as_labels
from fedjax_het.data.sources.files import DataDir, check_digest, folder
from fedjax_het.data.sources.raw import RawData

_SHA256 = "00f18b15e8fc72c61dcb7f1b3c23474f18e123e587d3894778eea6f6e72ab393"
_RATE = 8000
_FRAME = 256  # samples, 32 ms
_HOP = 125  # samples, so that one second gives 64 frames
_BANDS = 32
_LOWEST_HZ = 20.0
_TEST_EVERY = 5
_CLIPS_AT_ONCE = 256
_ARRAYS: Layout = {
    "audio": ("int16", ("N", _RATE)),
    "y": ("integers", ("N",)),
    "speaker": ("text", ("N",)),
    "classes": ("text", ("C",)),
}


def speech_commands(
    data_dir: DataDir = None, features: str = "log_mel", verify: bool = True
) -> RawData:
    """Speech Commands v0.02, the official test set: 4,890 clips of one second, 12 classes.

    The natural clients are the 621 speakers (half of them spoke one clip). The 408 clips of
    background noise (`_silence_`) have no speaker; they are spread evenly over the spoken clips in
    file order and belong to the speakers of those. The set is not split: every fifth clip of a
    speaker becomes a test sample, so speakers with fewer than five clips have none.

    Args:
      data_dir: directory with `speech_commands_v2_test_8khz.npz` (audio int16[N, 8000], y, speaker,
        classes), or with a folder `speech_commands` that holds it.
      features: form of the inputs: `"log_mel"`, float32[64, 32, 1], the natural logarithm of the
        power in 32 mel bands, 64 frames of 32 ms, for image models; or `"waveform"`, int16[8000].
      verify: whether content other than the published one is refused.
    """
    require_known(features, ("log_mel", "waveform"), "features")
    place = folder(data_dir, "speech_commands", "put speech_commands_v2_test_8khz.npz there")
    path = place.find("speech_commands_v2_test_8khz.npz")
    z = read_arrays(path, _ARRAYS, place.again)
    if verify:
        check_digest(place, path, _SHA256, z["audio"], z["y"])
    audio, y, speaker = z["audio"], as_labels(z["y"], f"{path}: y"), z["speaker"].copy()
    spoken, silent = np.flatnonzero(speaker != ""), np.flatnonzero(speaker == "")
    if len(spoken) == 0:
        raise place.broken(path, "no clip names its speaker")
    evenly = (np.arange(len(silent)) * len(spoken)) // max(len(silent), 1)
    speaker[silent] = speaker[spoken[evenly]]
    held = _every_fifth(speaker)
    waveform = features == "waveform"
    x = audio if waveform else log_mel(audio)
    return RawData(
        name="speech_commands",
        x=x[~held],
        y=y[~held],
        test_x=x[held],
        test_y=y[held],
        num_classes=len(z["classes"]),
        normalise=(0.0, 0.0835) if waveform else (-6.72, 4.79),
        classes=tuple(str(c) for c in z["classes"]),
        clients=speaker[~held],
        test_clients=speaker[held],
    )


def _every_fifth(owner: np.ndarray) -> np.ndarray:
    """Mask of the 5th, 10th ... sample of each owner, bool[N]."""
    by_owner = np.argsort(owner, kind="stable")
    _, count = np.unique(owner, return_counts=True)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    held = np.zeros(len(owner), bool)
    held[by_owner] = rank % _TEST_EVERY == _TEST_EVERY - 1
    return held


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Logarithmic mel spectrogram: Hann window, power spectrum, triangular bands, log(1e-6 + p).

    Args:
      audio: clips of one second at 8 kHz, int16[N, 8000].

    Returns:
      Spectrograms, float32[N, 64, 32, 1], frames by bands in order of rising frequency.
    """
    frames = audio.shape[1] // _HOP
    lack = (frames - 1) * _HOP + _FRAME - audio.shape[1]
    padded = np.pad(audio, ((0, 0), (lack // 2, lack - lack // 2)))
    window = (np.hanning(_FRAME + 1)[:-1] / 32768.0).astype(np.float32)
    bands = _mel_bands()
    out = np.empty((len(audio), frames, _BANDS, 1), np.float32)
    for begin in range(0, len(audio), _CLIPS_AT_ONCE):
        clips = padded[begin : begin + _CLIPS_AT_ONCE]
        cut = np.lib.stride_tricks.sliding_window_view(clips, _FRAME, axis=1)[:, ::_HOP]
        power = np.abs(np.fft.rfft(cut * window)) ** 2
        out[begin : begin + _CLIPS_AT_ONCE, ..., 0] = np.log(
            1e-6 + power.astype(np.float32) @ bands
        )
    return out


def _mel_bands() -> np.ndarray:
    """Triangles evenly spaced on the mel scale m = 2595 lg(1 + f/700), float32[129, 32]."""
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (_LOWEST_HZ, _RATE / 2))
    edges = 700.0 * (10.0 ** (np.linspace(low, high, _BANDS + 2) / 2595.0) - 1.0)
    hz = np.fft.rfftfreq(_FRAME, 1.0 / _RATE)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
