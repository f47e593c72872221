"""What an image file says of itself: that a model made it, which one, and from which seed."""

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
