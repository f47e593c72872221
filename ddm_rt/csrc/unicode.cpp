// Lookup in the tables of unicode_tables.cpp, which are unpacked once; normal form C as Unicode's annex 15 has it.
#include "unicode.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>

#include "text.h"
#include "unicode_tables.h"

namespace ddm::unicode {
namespace {

// Hangul syllables are made of up to three parts by arithmetic.
constexpr char32_t kSyllables = 0xAC00, kFirst = 0x1100, kSecond = 0x1161, kThird = 0x11A7;
constexpr char32_t kFirsts = 19, kSeconds = 21, kThirds = 28, kSyllableCount = kFirsts * kSeconds * kThirds;

struct Range {
    char32_t start, end;  // [start, end)
    std::int32_t stride, value;
};

using Ranges = std::vector<Range>;

Ranges unpack(const std::int32_t* table, std::size_t size, std::size_t width) {
    Ranges ranges;
    char32_t end = 0;
    for (std::size_t i = 0; i < size; i += width) {
        const char32_t start = end + static_cast<char32_t>(table[i]);
        end = start + static_cast<char32_t>(table[i + 1]);
        ranges.push_back({start, end, width == 4 ? table[i + 2] : 1, width > 2 ? table[i + width - 1] : 1});
    }
    return ranges;
}

// The value of the character's range, 0 outside of all.
std::int32_t find(const Ranges& ranges, char32_t character) {
    auto after = std::upper_bound(ranges.begin(), ranges.end(), character,
                                  [](char32_t wanted, const Range& range) { return wanted < range.start; });
    if (after == ranges.begin()) return 0;
    const Range& range = *--after;
    const bool inside = character < range.end && (character - range.start) % static_cast<char32_t>(range.stride) == 0;
    return inside ? range.value : 0;
}

struct Forms {
    std::unordered_map<char32_t, std::pair<char32_t, char32_t>> parts;
    std::map<std::pair<char32_t, char32_t>, char32_t> whole;

    Forms() {
        std::vector<char32_t> excluded;
        char32_t end = 0;
        for (std::size_t i = 0; i < not_composed_size; i++) {
            excluded.push_back(end + static_cast<char32_t>(not_composed[i]));
            end = excluded.back() + 1;
        }
        end = 0;
        for (std::size_t i = 0; i < decompositions_size; i += 3) {
            const char32_t character = end + static_cast<char32_t>(decompositions[i]);
            end = character + 1;
            const std::pair both{static_cast<char32_t>(decompositions[i + 1]),
                                 static_cast<char32_t>(decompositions[i + 2])};
            parts.emplace(character, both);
            if (both.second != 0 && !std::binary_search(excluded.begin(), excluded.end(), character)) {
                whole.emplace(both, character);
            }
        }
    }
};

const Forms& forms() {
    static const Forms unpacked;
    return unpacked;
}

std::int32_t combining_class(char32_t character) {
    static const Ranges ranges = unpack(combining, combining_size, 3);
    return find(ranges, character);
}

void decompose(const Letter& letter, Letters& out) {
    const char32_t syllable = letter.character - kSyllables;
    if (letter.character >= kSyllables && syllable < kSyllableCount) {
        out.push_back({kFirst + syllable / (kSeconds * kThirds), letter.first, letter.last});
        out.push_back({kSecond + syllable / kThirds % kSeconds, letter.first, letter.last});
        if (syllable % kThirds) out.push_back({kThird + syllable % kThirds, letter.first, letter.last});
        return;
    }
    const auto found = forms().parts.find(letter.character);
    if (found == forms().parts.end()) {
        out.push_back(letter);
        return;
    }
    decompose({found->second.first, letter.first, letter.last}, out);
    if (found->second.second) decompose({found->second.second, letter.first, letter.last}, out);
}

// What the two make together, 0 where that is nothing.
char32_t compose(char32_t left, char32_t right) {
    if (left >= kFirst && left < kFirst + kFirsts && right >= kSecond && right < kSecond + kSeconds) {
        return kSyllables + ((left - kFirst) * kSeconds + (right - kSecond)) * kThirds;
    }
    const char32_t syllable = left - kSyllables;
    if (left >= kSyllables && syllable < kSyllableCount && syllable % kThirds == 0 && right > kThird &&
        right < kThird + kThirds) {
        return left + (right - kThird);
    }
    const auto found = forms().whole.find({left, right});
    return found == forms().whole.end() ? 0 : found->second;
}

}  // namespace

Letters decode(std::string_view text) {
    Letters letters;
    letters.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        const auto [code, bytes] = character(text, at);
        letters.push_back({code, letters.size(), letters.size() + 1});
        at += std::max<std::size_t>(bytes, 1);
    }
    return letters;
}

void append_utf8(std::string& out, char32_t character) {
    if (character < 0x80) {
        out += static_cast<char>(character);
        return;
    }
    const int more = character < 0x800 ? 1 : character < 0x10000 ? 2 : 3;
    static constexpr std::array<unsigned char, 4> lead{0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(lead[more] | character >> (6 * more));
    for (int k = more - 1; k >= 0; k--) out += static_cast<char>(0x80 | (character >> (6 * k) & 0x3F));
}

bool is_letter(char32_t character) {
    static const Ranges ranges = unpack(letters, letters_size, 2);
    return find(ranges, character) != 0;
}

bool is_number(char32_t character) {
    static const Ranges ranges = unpack(numbers, numbers_size, 2);
    return find(ranges, character) != 0;
}

bool is_space(char32_t c) {
    return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

Letters composed(const Letters& text) {
    Letters apart;
    for (const Letter& letter : text) decompose(letter, apart);
    // Marks of one base stand in the order of their classes.
    for (auto start = apart.begin(); start != apart.end();) {
        auto end = std::find_if(start, apart.end(), [](const Letter& l) { return combining_class(l.character) == 0; });
        std::stable_sort(start, end, [](const Letter& a, const Letter& b) {
            return combining_class(a.character) < combining_class(b.character);
        });
        start = end == apart.end() ? end : end + 1;
    }
    Letters whole;
    std::size_t base = 0;
    bool has_base = false;
    for (const Letter& letter : apart) {
        const std::int32_t cls = combining_class(letter.character);
        if (has_base) {
            // A mark meets its base unless one between them has the same class or a higher one.
            const bool beside = whole.size() == base + 1;
            const std::int32_t before = beside ? 0 : combining_class(whole.back().character);
            if (beside || (before < cls && before != 0)) {
                if (const char32_t both = compose(whole[base].character, letter.character)) {
                    whole[base].character = both;
                    whole[base].last = std::max(whole[base].last, letter.last);
                    continue;
                }
            }
        }
        whole.push_back(letter);
        if (cls == 0) {
            base = whole.size() - 1;
            has_base = true;
        }
    }
    return whole;
}

Letters with_single_blanks(const Letters& text) {
    Letters out;
    bool blank = false;
    for (const Letter& letter : text) {
        const bool space = is_space(letter.character);
        if (space && blank) {
            out.back().last = letter.last;
        } else {
            out.push_back(space ? Letter{U' ', letter.first, letter.last} : letter);
        }
        blank = space;
    }
    return out;
}

Letters lowered(const Letters& text) {
    static const Ranges capitals = unpack(lowercase, lowercase_size, 4);
    Letters out;
    out.reserve(text.size());
    for (const Letter& letter : text) {
        if (letter.character == U'\u0130') {  // the only one that becomes two
            out.push_back({U'i', letter.first, letter.last});
            out.push_back({U'\u0307', letter.first, letter.last});
            continue;
        }
        const auto distance = find(capitals, letter.character);
        out.push_back({static_cast<char32_t>(static_cast<std::int32_t>(letter.character) + distance), letter.first,
                       letter.last});
    }
    return out;
}

}  // namespace ddm::unicode
