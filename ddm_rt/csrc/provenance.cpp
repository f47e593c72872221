#include "provenance.h"

#include "text.h"

namespace ddm {
namespace {

// It begins with U+FEFF, which says that it is in UTF-8.
constexpr const char* kBegin = R"(<?xpacket begin=")" "\xEF\xBB\xBF" R"(" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:ddm_rt="urn:ddm-rt:"
   Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
   Iptc4xmpExt:AISystemUsed="ddm-rt")";
constexpr const char* kEnd = R"(/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>)";

template <typename T>
std::string own(const char* name, const T& value) {
    return concat("\n   ddm_rt:", name, "=\"", value, "\"");
}

}  // namespace

std::vector<std::string> packets(const Manifest& manifest) {
    std::vector<std::string> out;
    if (!manifest.request.provenance) return out;
    const std::string bundle = own("bundle", manifest.bundle_id);
    for (const ImageRecord& image : manifest.images) {
        const std::string code = manifest.request.provenance_code ? own("code", image.code) : "";
        out.push_back(concat(kBegin, bundle, own("seed", image.seed), code, kEnd));
    }
    out.push_back(concat(kBegin, bundle, kEnd));
    return out;
}

}  // namespace ddm
