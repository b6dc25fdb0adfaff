"""Tests of the rules by which a file becomes 8-bit RGB."""

import io
import os
import runpy
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from iqa_utils import decoding, files
from iqa_utils.decoding import BadImageError, image_size, read_image
from iqa_utils.files import find_images

RGB = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)  # odd both ways
GREY = RGB[..., 0]
SMOOTH = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8) * 2
UPRIGHT = {  # EXIF orientation -> what a viewer does to the stored pixels
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def save(path, image, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def pixels(path):
    image = read_image(path)
    assert image.mode == "RGB"
    assert image_size(path) == image.size[::-1]
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "A.PNG"])
def test_lossless_files_give_their_pixels_back(tmp_path, name):
    np.testing.assert_array_equal(pixels(save(tmp_path / name, RGB)), RGB)


def test_jpeg_gives_what_pillow_gives(tmp_path):
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 95}):
        path = save(tmp_path / "a.jpg", RGB, **options)
        np.testing.assert_array_equal(pixels(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_grey_is_repeated_in_three_channels(tmp_path, name):
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(save(tmp_path / name, GREY)), expected)


def test_one_bit_becomes_black_and_white(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(pixels(path)[..., 1], (GREY > 100) * 255)


def test_a_palette_is_expanded(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    path = save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(pixels(path), np.asarray(image.convert("RGB")))


def test_cmyk_follows_pillow(tmp_path):
    image = Image.fromarray(RGB).convert("CMYK")
    for name in ("a.jpg", "a.tif"):
        path = save(tmp_path / name, image)
        np.testing.assert_array_equal(pixels(path), np.asarray(Image.open(path).convert("RGB")))


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    deep = np.array([[0, 255, 256], [257, 65280, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        found = pixels(save(tmp_path / name, deep))
        np.testing.assert_array_equal(found[..., 0], deep >> 8)
        np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_sixteen_bit_colour_keeps_its_high_byte_too(tmp_path):
    import struct
    import zlib

    deep = np.array([[[0, 255, 256], [257, 65280, 65535]]], dtype=">u2")  # (1, 2, 3)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + deep.tobytes())
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(pixels(path), deep >> 8)


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path):
    alpha = np.dstack([RGB, np.full(GREY.shape, 255, dtype=np.uint8)])
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.png", alpha)), RGB)
    alpha[3, 4, 3] = 254
    with pytest.raises(
        BadImageError, match=r"b\.png: expected opaque pixels, found alpha down to 254"
    ):
        read_image(save(tmp_path / "b.png", alpha))
    palette = Image.fromarray(RGB).quantize(16)
    with pytest.raises(BadImageError, match="opaque"):
        read_image(save(tmp_path / "c.png", palette, transparency=palette.getpixel((0, 0))))
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (17, 13), 255)])
    found = pixels(save(tmp_path / "d.png", grey_alpha))
    np.testing.assert_array_equal(found[..., 0], GREY)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_pixels_stand_upright(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = save(tmp_path / f"tagged-{name}", RGB, exif=exif)
    plain = save(tmp_path / f"plain-{name}", RGB)
    np.testing.assert_array_equal(pixels(tagged), UPRIGHT[orientation](pixels(plain)))


def test_the_first_picture_of_an_mpo_counts(tmp_path):
    path = tmp_path / "a.mpo"
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    first.save(path, format="MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    plain = save(tmp_path / "a.jpg", RGB)
    np.testing.assert_array_equal(pixels(path), pixels(plain))


def test_several_pages_and_animations_are_refused(tmp_path):
    for name in ("a.tif", "a.png"):
        path = tmp_path / name
        images = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
        images[0].save(path, save_all=True, append_images=images[1:])
        with pytest.raises(BadImageError, match="found 2 pages or frames"):
            read_image(path)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PPM"])
def test_other_formats_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "photo.jpg"  # the name does not decide
    Image.fromarray(RGB).save(path, format=kind)
    with pytest.raises(BadImageError, match=rf"photo\.jpg: expected one of JPEG.*found {kind}"):
        read_image(path)


def test_modes_without_an_obvious_rule_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(BadImageError, match="no rule turns mode 'F'"):
        read_image(path)
    path = save(tmp_path / "b.tif", Image.fromarray(RGB).convert("LAB"))
    with pytest.raises(BadImageError, match="no rule turns mode 'LAB'"):
        read_image(path)
    path = save(tmp_path / "c.tif", Image.fromarray(np.ones((4, 4), dtype=np.int32)))
    with pytest.raises(BadImageError, match="no rule turns mode 'I'"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, name, share):
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([SMOOTH] * 3)).save(buffer, Image.registered_extensions()[name[1:]])
    path = tmp_path / name
    path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(BadImageError, match=rf"{name[0]}\.{name[2:]}: "):
        read_image(path)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 60] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadImageError, match="truncated or corrupt"):
        read_image(path)


def test_no_image_at_all_and_no_file(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(BadImageError, match="not an image"):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").touch()
    with pytest.raises(BadImageError, match="not an image"):
        image_size(tmp_path / "b.jpg")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "c.jpg")


def test_a_huge_canvas_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("1", (10000, 10000)))  # 100 megapixels in 12 kB
    told = r"a\.png: .*(more than 64 million; set IQA_MAX_MEGAPIXELS|exceeds limit)"
    for read in (read_image, image_size):
        with pytest.raises(BadImageError, match=told):
            read(path)
    small = save(tmp_path / "b.png", RGB)
    monkeypatch.setattr(decoding, "MEGAPIXELS", 220e-6)
    with pytest.raises(BadImageError, match=r"b\.png: 17x13 pixels are more than 0\.00022 million"):
        read_image(small)
    monkeypatch.setattr(decoding, "MEGAPIXELS", 221e-6)
    assert pixels(small).shape == (13, 17, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadImageError, match="decompression bomb"):
        read_image(small)


def test_the_limit_of_pixels_is_a_setting_that_reaches_pillow(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("1", (10000, 10000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    monkeypatch.setenv("IQA_MAX_MEGAPIXELS", "100")
    assert runpy.run_path(decoding.__file__)["image_size"](path) == (10000, 10000)


@pytest.mark.parametrize("limit", ["inf", "nan", "-1", "0", "abc", ""])
def test_a_limit_of_pixels_that_is_none_is_refused_in_one_sentence(monkeypatch, limit):
    monkeypatch.setenv("IQA_MAX_MEGAPIXELS", limit)
    told = rf"^IQA_MAX_MEGAPIXELS: expected a number above 0, found '{limit}'$"
    with pytest.raises(ValueError, match=told):
        runpy.run_path(decoding.__file__)


def test_a_file_larger_than_its_pixels_can_be_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", RGB)
    os.truncate(path, 40 * 10**9)  # sparse: it takes no disk
    monkeypatch.setattr(type(path), "read_bytes", lambda _: pytest.fail("it was read"))
    told = r"a\.png: 40,000,000,000 bytes are more than 64 million pixels take \(579,108,864\)"
    with pytest.raises(BadImageError, match=told):
        read_image(path)


def with_chunk(path, kind, data):
    content = path.read_bytes()
    body = kind + data
    chunk = struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content[:33] + chunk + content[33:])  # behind the header
    return path


def test_an_orientation_that_cannot_be_read_is_a_bad_image_by_name(tmp_path):
    path = with_chunk(save(tmp_path / "a.png", RGB), b"eXIf", b"MM\0*")
    for read in (read_image, image_size):
        with pytest.raises(BadImageError, match=r"a\.png: .*corrupt"):
            read(path)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.png", "a.bmp", "a.mpo"])
def test_whatever_bits_are_flipped_an_image_is_read_or_is_bad_by_name(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"save_all": True, "append_images": [Image.fromarray(GREY)]} if "mpo" in name else {}
    path = save(tmp_path / name, RGB, exif=exif, **options)
    whole = path.read_bytes()
    ends = [*range(min(len(whole), 250)), *range(max(250, len(whole) - 250), len(whole))]
    for place in ends:  # where headers and directories are
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        for read in (read_image, image_size):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read(path)
                except BadImageError as error:
                    assert name in str(error)  # noqa: PT017 - most flips do no harm


def test_a_link_to_itself_does_not_stop_the_search(tmp_path):
    save(tmp_path / "z.png", RGB)
    for name in ("a.png", "b"):
        (tmp_path / name).symlink_to(name)
    found = {path.name: why for path, why in find_images([tmp_path]).items()}
    assert found == {"a.png": "a link to nothing, or no ordinary file", "z.png": ""}


def test_a_folder_that_cannot_be_opened_is_named_and_the_others_are_searched(tmp_path, monkeypatch):
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.png", RGB)
    scandir = os.scandir

    def refuse(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(files.os, "scandir", refuse)
    found = {p.relative_to(tmp_path).as_posix(): why for p, why in find_images([tmp_path]).items()}
    assert found == {"closed": "a folder that cannot be read (Permission denied)", "open/a.png": ""}


def test_folders_in_folders_are_searched_as_deep_as_the_system_goes(tmp_path):
    here, depth = os.open(tmp_path, os.O_RDONLY), 1200
    for _ in range(depth):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    save(tmp_path / "deep" / "z.png", RGB)
    try:
        found = {path.relative_to(tmp_path): why for path, why in find_images([tmp_path]).items()}
    finally:  # Python's own rmtree does not get that deep
        subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)
    (longest, why), *images = found.items()
    assert why == "a folder that cannot be read (File name too long)"
    assert len(longest.parts) > 700
    assert [(path.name, why) for path, why in images] == [("z.png", "")]


def test_a_file_that_may_not_be_read_is_a_bad_image(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    path = save(tmp_path / "a.png", RGB)
    for name in ("read_bytes", "open"):
        monkeypatch.setattr(type(path), name, lambda path, *_: refuse(path))
    for read in (read_image, image_size):
        with pytest.raises(BadImageError, match=r"a\.png: cannot be read \(Permission denied\)"):
            read(path)


def test_what_only_looks_like_an_image_is_told_with_its_reason(tmp_path):
    for name in ("a/2.JPG", "a/10.png", "a-b.jpg", "a.png/deep.tif", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "moving.gif").touch()
    (tmp_path / "a/gone.jpeg").symlink_to("nowhere.jpeg")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "a")
    found = {p.relative_to(tmp_path).as_posix(): why for p, why in find_images([tmp_path]).items()}
    assert found == {
        "a-b.jpg": "",
        "a.png": "a folder",
        "a.png/deep.tif": "",
        "a/10.png": "",
        "a/2.JPG": "",
        "a/gone.jpeg": "a link to nothing, or no ordinary file",
        "elsewhere": "a folder behind a link, which is not followed",
        "moving.gif": "a format that is not read (JPEG, PNG, BMP, TIFF, MPO are)",
    }
    assert list(found) == sorted(found)
    assert find_images([tmp_path / "notes.txt"]) == {tmp_path / "notes.txt": ""}


def test_the_switch_that_hides_truncation_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", RGB)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadImageError, match="unset it"):
        read_image(path)


def test_sideways_photographs_are_turned(real_data):
    path = real_data / "biq2021" / "Images" / "ss01 (1350).jpg"  # stored sideways, orientation 6
    stored = np.asarray(Image.open(path))
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.rot90(stored, -1))
