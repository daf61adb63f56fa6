"""Videos as cases: what is decoded, what is damaged, and the results and pictures of them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

av = pytest.importorskip("av")

import omlab  # noqa: E402
from omlab.cases import Video, find, read  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.files import natural  # noqa: E402
from omlab.results import Detections, FrameLabels, Label, Scores, VideoSegmentation, headline, write  # noqa: E402
from omlab.results.picture import draw  # noqa: E402
from omlab.vocabulary import InputKind  # noqa: E402

FRAMES, SIZE = 60, (64, 96)


def _pixels(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame whose red tells its number; a white corner tells which way is up."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:] = (4 * number, number, number)
    pixels[:16, :16] = 255
    return pixels


def film(path: Path, frames: int = FRAMES, codec: str = "libx264", rate: int = 25, gop: int = 12) -> Path:
    """A video of :func:`_pixels`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.gop_size = SIZE[1], SIZE[0], gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_pixels(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def _number(frame: np.ndarray) -> int:
    return round(float(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) / 4)


@pytest.mark.parametrize(
    ("name", "codec", "exact"), [("a.mp4", "libx264", False), ("a.mkv", "libx264", True), ("a.avi", "mpeg4", False)]
)
def test_frames_come_in_order_and_at_random(tmp_path: Path, name: str, codec: str, exact: bool) -> None:
    video = read(film(tmp_path / name, codec=codec))
    assert isinstance(video, Video)
    assert (video.frame_count, video.exact, video.rate, video.size) == (FRAMES, exact, 25.0, SIZE)
    assert video.time_s(50) == 2.0
    seen = list(video.frames())
    assert [n for n, _ in seen] == list(range(FRAMES))
    assert all(abs(_number(f) - n) <= 1 for n, f in seen)
    assert seen[0][1].dtype == np.uint8
    assert [n for n, _ in video.frames(7, 40, 9)] == [7, 16, 25, 34]
    assert all(abs(_number(f) - n) <= 1 for n, f in video.frames(45))
    asked = [50, 3, 3, 59, 31]
    assert np.abs(np.array([_number(f) for f in video.at(asked)]) - asked).max() <= 1
    assert video.source.warnings == ()
    with pytest.raises(IndexError, match="frames 0 to 59"):
        video.at([60])


def test_jumping_gives_the_frames_that_decoding_all_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omlab.cases import video_file

    video = read(film(tmp_path / "a.mp4", frames=60, gop=8))
    every = dict(video.frames())
    monkeypatch.setattr(video_file, "FAR", 0)
    monkeypatch.setattr(video_file, "NEAR", 0)
    again = read(tmp_path / "a.mp4")
    for n, frame in zip([0, 13, 14, 37, 58], again.at([0, 13, 14, 37, 58]), strict=True):
        np.testing.assert_array_equal(frame, every[n])
    assert len(again.frames_from.index.keys) >= 7


def test_few_frames_are_in_memory_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    video = read(film(tmp_path / "a.mp4", frames=60))
    next(iter(video.frames()))
    tracemalloc.start()
    for _ in video.frames():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * SIZE[0] * SIZE[1] * 3


def test_rotation_is_honoured(tmp_path: Path) -> None:
    """A telephone held upright stores lying frames and a matrix: a quarter turn with the clock."""
    content = bytearray(film(tmp_path / "a.mp4", frames=3).read_bytes())
    at = content.find(b"tkhd") + 4
    at += 4 + (8 + 4 + 4 + 4 if content[at] == 0 else 16 + 4 + 4 + 8) + 8 + 8
    content[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    video = read(tmp_path / "turned.mp4")
    assert video.size == (96, 64)
    frame = video.at([0])[0]
    assert frame[5, -5, 1] > 200  # the corner that was left of the top is right of it
    assert frame[5, 5, 1] < 60


def test_a_folder_of_frames_is_a_video_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "case-7"
    folder.mkdir()
    for number in range(12):
        Pillow.fromarray(_pixels(number)).save(folder / f"frame{number}.png")
    (folder / "labels.txt").write_text("nothing")
    (found,) = find([tmp_path], kinds={InputKind.VIDEO})
    assert found.name == "case-7"
    video = found.read(kind={InputKind.VIDEO})
    assert (video.frame_count, video.exact, video.rate_known) == (12, True, False)
    assert "30 are taken" in video.source.warnings[0]
    assert [_number(f) for f in video.at([11, 2, 10])] == [11, 2, 10]
    assert natural("f2.png") < natural("f10.png")
    Pillow.fromarray(_pixels(5, (32, 32))).save(folder / "frame5.png")
    with pytest.raises(InputError, match=r"frame5\.png: is 32 x 32 pixels, the first frame 64 x 96"):
        list(read(folder, kind=InputKind.VIDEO).frames())
    (folder / "frame5.png").write_bytes((folder / "frame4.png").read_bytes()[:60])
    video = read(folder, kind=InputKind.VIDEO)
    assert [n for n, _ in video.frames()] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert any("frame was left out" in w for w in video.source.warnings)
    with pytest.raises(InputError, match="holds no picture"):
        read(tmp_path, kind=InputKind.VIDEO)


def _cine(path: Path, photometric: str = "RGB", frames: int = 6) -> Path:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.NumberOfFrames, dataset.FrameTime = "ES", frames, 40
    dataset.Rows, dataset.Columns = SIZE
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PhotometricInterpretation = photometric
    stack = np.stack([_pixels(n) for n in range(frames)])
    if photometric == "RGB":
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    else:
        dataset.SamplesPerPixel = 1
        stack = stack[..., 0]
    dataset.PixelData = stack.tobytes()
    pydicom.dcmwrite(path, dataset)
    return path


@pytest.mark.parametrize("photometric", ["RGB", "MONOCHROME2", "MONOCHROME1"])
def test_a_dicom_cine_loop_is_a_video(tmp_path: Path, photometric: str) -> None:
    video = read(_cine(tmp_path / "loop.dcm", photometric), kind=InputKind.VIDEO)
    assert (video.frame_count, video.rate, video.size) == (6, 25.0, SIZE)
    turned = (lambda v: 255 - v) if photometric == "MONOCHROME1" else (lambda v: v)
    assert [int(f[40, 40, 0]) for f in video.at([4, 1])] == [turned(16), turned(4)]
    (found,) = find([tmp_path], kinds={InputKind.VIDEO})
    assert found.read(kind={InputKind.VIDEO}).frame_count == 6


def test_a_dicom_cine_loop_that_is_cut_short(tmp_path: Path) -> None:
    whole = _cine(tmp_path / "loop.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    video = read(tmp_path / "cut.dcm", kind=InputKind.VIDEO)
    assert [n for n, _ in video.frames()] == [0, 1]
    assert any("ends at frame 2, 6 frames were expected" in w for w in video.source.warnings)
    (tmp_path / "none.dcm").write_bytes(whole[: len(whole) // 20])
    with pytest.raises(InputError, match=r"none\.dcm: .*(damaged|cut short)"):
        read(tmp_path / "none.dcm", kind=InputKind.VIDEO)


def test_a_video_that_was_put_into_dicom(tmp_path: Path) -> None:
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset = pydicom.dcmread(_cine(tmp_path / "loop.dcm"))
    stream = film(tmp_path / "a.mp4", frames=10).read_bytes()
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    dataset.NumberOfFrames, dataset.PhotometricInterpretation = 10, "YBR_PARTIAL_420"
    dataset.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "video.dcm")
    video = read(tmp_path / "video.dcm", kind=InputKind.VIDEO)
    assert (video.frame_count, video.rate) == (10, 25.0)
    assert [_number(f) for f in video.at([9, 2])] == [9, 2]


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InputError, match=r"sound\.mp4: has no video stream, it has audio"):
        read(tmp_path / "sound.mp4")
    content = film(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[:200])
    with pytest.raises(InputError, match=r"cut\.mp4: (is damaged or cut short|has no video stream)"):
        read(tmp_path / "cut.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "empty.mp4")
    Pillow.fromarray(_pixels(0)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match=r"one\.png: is a 2D image, expected MP4"):
        read(tmp_path / "one.png", kind=InputKind.VIDEO)


def test_a_single_frame_is_a_video(tmp_path: Path) -> None:
    video = read(film(tmp_path / "one.mp4", frames=1))
    assert video.frame_count == 1
    assert video.at([0, 0]).shape == (2, *SIZE, 3)


def test_a_video_cut_short_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    content = film(tmp_path / "a.mkv", gop=6).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    video = read(tmp_path / "cut.mkv")
    assert 5 < video.frame_count < FRAMES
    assert len(list(video.frames())) >= video.frame_count - 2
    assert any("cut short" in w for w in video.source.warnings)


def test_damage_in_the_middle_does_not_shift_what_comes_after(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", codec="mjpeg")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for pos, size in packets[20:24]:  # whole pictures become noise
        content[pos : pos + size] = np.random.default_rng(0).bytes(size)
    (tmp_path / "noise.avi").write_bytes(content)
    video = read(tmp_path / "noise.avi")
    seen = dict(video.frames())
    assert sorted(set(range(FRAMES)) - set(seen)) == [20, 21, 22, 23]
    assert all(abs(_number(frame) - n) <= 1 for n, frame in seen.items())
    assert video.source.warnings == ("is damaged: some frames cannot be decoded; those before and after were used",)
    assert [round(_number(f), -1) for f in video.at([21, 50])] == [20, 50]  # the last one before it
    again = read(tmp_path / "noise.avi")
    assert next(n for n, _ in again.pick([22, 30, 40])) == 30  # and no more is wanted
    assert again.source.warnings == video.source.warnings


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4", "libx264"])
@pytest.mark.parametrize("far", [0, 400])
def test_lost_chunks_of_an_avi_shift_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, far: int
) -> None:
    """Heads and all: the table at the end of the file knows the numbers of those that are left."""
    from omlab.cases import video_file

    monkeypatch.setattr(video_file, "FAR", far)
    path = film(tmp_path / "a.avi", codec=codec)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    start, end = packets[20][0] - 8, sum(packets[23])
    content[start:end] = bytes(end - start)
    (tmp_path / "lost.avi").write_bytes(content)
    video = read(tmp_path / "lost.avi")
    seen = dict(video.frames())
    assert sorted(set(range(FRAMES)) - set(seen)) == [20, 21, 22, 23]
    told = [n for n in seen if not 24 <= n < 36 or codec == "mjpeg"]  # until the next key frame the decoder guesses
    assert all(abs(_number(seen[n]) - n) <= 1 for n in told)
    assert video.source.warnings == ("is damaged: some frames cannot be decoded; those before and after were used",)
    assert [round(_number(f), -1) for f in video.at([10, 50, 22])] == [10, 50, 20]


def _dropped(content: bytes, numbers: set[int]) -> bytes:
    """An AVI as a recorder writes it that dropped these frames: their chunks have no content."""
    place, end = content.index(b"movi") + 4, content.rfind(b"idx1")
    head, out, table, number = bytearray(content[:place]), bytearray(), bytearray(), 0
    while place < end and content[place : place + 2] == b"00":
        name, (size,) = content[place : place + 4], struct.unpack_from("<I", content, place + 4)
        data = b"" if number in numbers else content[place + 8 : place + 8 + size]
        table += name + struct.pack("<3I", 16 * (number % 12 == 0), len(out) + 4, len(data))
        out += name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
        place, number = place + 8 + size + size % 2, number + 1
    struct.pack_into("<I", head, len(head) - 8, len(out) + 4)
    found = head + out + b"idx1" + struct.pack("<I", len(table)) + table
    struct.pack_into("<I", found, 4, len(found) - 8)
    return bytes(found)


def test_frames_that_the_recorder_of_an_avi_dropped_are_those_before_them(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", codec="mjpeg")
    path.write_bytes(_dropped(path.read_bytes(), {20, 21, 22, 23}))
    video = read(path)
    seen = dict(video.frames())
    assert video.frame_count == FRAMES and sorted(set(range(FRAMES)) - set(seen)) == [20, 21, 22, 23]
    assert all(abs(_number(frame) - n) <= 1 for n, frame in seen.items())
    assert video.source.warnings == ()  # nothing is damaged
    assert [abs(_number(f) - n) <= 1 for f, n in zip(video.at([22, 40]), (19, 40), strict=True)] == [True, True]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_video_whose_header_promises_more(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, codec="mpeg4", gop=6)
    with av.open(str(path)) as container:
        positions = [p.pos for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    content[positions[40] :] = bytes(len(content) - positions[40]) if name == "a.avi" else b""
    if name == "a.mp4":  # its index lies at the end, and without one there is nothing to go by
        (tmp_path / "cut.mp4").write_bytes(content)
        with pytest.raises(InputError, match=r"cut\.mp4: is damaged or cut short"):
            read(tmp_path / "cut.mp4")
        return
    (tmp_path / "cut.avi").write_bytes(content)
    video = read(tmp_path / "cut.avi")
    assert (video.frame_count, len(list(video.frames()))) == (FRAMES, 40)
    assert any("ends after frame 39, 60 frames were expected" in w for w in video.source.warnings)


def _masks(video: Video) -> VideoSegmentation:
    labels = FrameLabels(video.size, [1])
    for number in range(0, video.frame_count, 5):
        mask = np.zeros(video.size, np.uint8)
        if 20 <= number < 40:
            mask[20:40, 30:60] = 1
        labels.append(mask)
    frames = np.arange(0, video.frame_count, 5)
    return VideoSegmentation(
        labels=labels, structures=(Label(value=1, name="polyp", colour=(213, 94, 0)),), frames=frames, rate=video.rate
    )


def test_masks_of_a_video_are_written_frame_by_frame(tmp_path: Path) -> None:
    video = read(film(tmp_path / "a.mp4"))
    result = _masks(video)
    assert headline(result) == "polyp in 4 of 12 frames"
    assert result.counts() == {1: 4 * 600}
    files = write(result, video, tmp_path, formats=["tiff", "csv", "npz", "json"])
    with Pillow.open(files["tiff"]) as tiff:
        assert tiff.n_frames == 12
        tiff.seek(5)
        np.testing.assert_array_equal(np.asarray(tiff), result.labels[5])
    rows = files["csv"].read_text().splitlines()
    assert rows[0] == "frame,time_s,polyp_px,polyp_share"
    assert rows[6] == "25,1.0,600,0.097656"
    np.testing.assert_array_equal(np.load(files["npz"])["labels"], np.asarray(result.labels))
    assert set(write(result, video, tmp_path)) == {"tiff", "csv"}
    with pytest.raises(UsageError, match="masks of a video cannot be written as nifti"):
        write(result, video, tmp_path, formats=["nifti"])
    with pytest.raises(ValueError, match="label maps are uint8"):
        result.labels.append(np.zeros((3, 3), np.uint8))


def test_pictures_show_the_frames_where_something_is(tmp_path: Path) -> None:
    video = read(film(tmp_path / "a.mp4"))
    boxes = Detections(
        boxes=np.array([[30, 20, 60, 40]], np.float32), scores=np.array([0.9], np.float32), labels=np.array([0]),
        classes=("polyp",), frames=np.array([33]),
    )  # fmt: skip
    line = Scores(columns={"start_s": [0.0, 1.2], "end_s": [1.2, 2.4], "abnormal": [0.1, 0.8]})
    for name, result in {"masks": _masks(video), "boxes": boxes, "line": line}.items():
        path = draw(result, video, tmp_path / f"{name}.png", title="Test")
        assert path is not None
        with Pillow.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.shape[1] > 1000
        orange = (np.abs(pixels - np.array([213, 94, 0])).sum(axis=2) < 90).sum()
        assert orange > (400 if name != "line" else 50)
    empty = Detections(
        boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), labels=np.zeros(0, int),
        classes=("polyp",), frames=np.zeros(0, int),
    )  # fmt: skip
    assert draw(empty, video, tmp_path / "none.png") is not None
    assert draw(omlab.Embedding(vector=np.zeros(3, np.float32)), video, tmp_path / "e.png") is None
