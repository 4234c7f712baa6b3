"""XML from devices and archives, read so that a document cannot grow while it is parsed."""

from __future__ import annotations

import base64
import binascii
import math
import re
from xml.etree import ElementTree

from ecg_agent_ray.errors import CorruptRecordingError

__all__ = [
    "decode_base64",
    "decode_xml",
    "number",
    "parse_document",
    "text_of",
    "xml_root_name",
]

# an ECG's XML has a few thousand elements; a hundred bytes of memory go into each
_MAX_TAGS, _MAX_ATTRIBUTES = 1_000_000, 1_000_000
_MAX_BYTES = 1 << 28
_BARE_DOCTYPE = re.compile(
    r"<!DOCTYPE\s+[\w:.-]+(?:\s+SYSTEM|\s+PUBLIC\s+(?:\"[^\"<>]*\"|'[^'<>]*'))?"
    r"(?:\s+(?:\"[^\"<>]*\"|'[^'<>]*'))?\s*>"
)


def decode_xml(data: bytes) -> str:
    """XML bytes as text, by byte order mark or declaration. Raises CorruptRecordingError."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif data[:4] in (b"<\0?\0", b"\0<\0?"):
        encoding = "utf-16-le" if data[:1] == b"<" else "utf-16-be"
    else:
        declared = re.match(rb"^[^>]{0,100}encoding=[\"']([A-Za-z0-9._-]{1,20})[\"']", data)
        encoding = declared[1].decode().lower() if declared else "utf-8"
        if encoding.startswith(("windows-125", "iso-8859", "latin")):
            encoding = "latin-1"
        elif encoding not in ("utf-8", "ascii", "us-ascii"):
            encoding = "utf-8"
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise CorruptRecordingError(f"broken XML: {error}") from error


def xml_root_name(data: bytes) -> str | None:
    """The local name of the root element; None where these bytes do not begin as XML."""
    if not data[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"<"):
        return None
    head = data[: 65536 - 65536 % 4].replace(b"\0", b"").decode("latin-1")
    head = re.sub(r"<!--.*?-->|<\?.*?\?>", "", head, flags=re.S)
    match = re.search(r"<(?:[\w.-]+:)?([A-Za-z_][\w.-]*)", head)
    return match[1] if match else ""


def parse_document(data: bytes) -> ElementTree.Element:
    """The root element.

    A document type that only names its DTD is left out (the DTD is never fetched); one that
    declares anything is refused, since entities could grow without bound. So are documents of more
    elements than any ECG has. Raises CorruptRecordingError.
    """
    if len(data) > _MAX_BYTES:
        raise CorruptRecordingError(f"XML of over {_MAX_BYTES >> 20} MiB")
    text = _BARE_DOCTYPE.sub("", decode_xml(data), count=1)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise CorruptRecordingError("the XML declares a document type, which no ECG needs")
    if text.count("<") > _MAX_TAGS or text.count("=") > _MAX_ATTRIBUTES:
        raise CorruptRecordingError("the XML has more elements than any ECG")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError, MemoryError) as error:
        raise CorruptRecordingError(f"broken XML: {error}") from error


def text_of(parent: ElementTree.Element, name: str) -> str:
    """The trimmed text of a direct child, in any namespace; empty where it is absent."""
    return (parent.findtext(f"{{*}}{name}") or "").strip()


def number(text: str | None, what: str, default: float | None = None) -> float:
    """A finite number, or ``default`` where there is no text. Raises CorruptRecordingError."""
    if not text and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorruptRecordingError(f"{what} is {(text or '')[:40]!r}, which is no number")
    return value


def decode_base64(text: str, what: str) -> bytes:
    """Base64 with line breaks. Raises CorruptRecordingError for other signs or a cut end."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptRecordingError(f"{what} is no base64: {error}") from error
