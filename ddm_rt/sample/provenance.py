"""What an image file says of itself: that a model made it, which one, and from which seed."""

from collections.abc import Mapping
from typing import Any

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def xmp(bundle_id: str, seed: int | None = None, code: int | None = None) -> bytes:
    """An XMP packet for an image file, UTF-8.

    It holds IPTC's `DigitalSourceType` for what a trained model made, and `AISystemUsed` (IPTC Photo Metadata Standard
    2025.1), with the bundle. The seed is an image's own; sheets of several images have none. The C library writes the
    same bytes (`csrc/provenance.cpp`).
    """
    own = {"bundle": bundle_id, "seed": seed, "code": code}
    told = "".join(f'\n   ddm_rt:{name}="{value}"' for name, value in own.items() if value is not None)
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:Iptc4xmpExt="{_IPTC}"
   xmlns:ddm_rt="urn:ddm-rt:"
   Iptc4xmpExt:DigitalSourceType="{_SOURCE}"
   Iptc4xmpExt:AISystemUsed="ddm-rt"{told}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()


def told(manifest: Mapping[str, Any], image: Mapping[str, Any] | None = None) -> bytes | None:
    """What the file of an image says by its manifest, which is plain data, and its record there; without a record, what
    a sheet of all images says. None: nothing.
    """
    request = manifest["request"]
    if not request.get("provenance"):
        return None
    if image is None:
        return xmp(manifest["bundle_id"])
    return xmp(manifest["bundle_id"], image["seed"], image["code"] if request.get("provenance_code") else None)
