#include "clip_tokenizer.h"

#include <algorithm>
#include <array>

#include "bundle.h"
#include "error.h"
#include "fields.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr const char* WORDS = R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";
constexpr const char* WHOLE_TOKENS = R"(<\|startoftext\|>|<\|endoftext\|>|)";
constexpr std::array<std::u32string_view, 7> CONTRACTIONS{U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
constexpr const char* NORMALIZER =
    R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, )"
    R"({"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]})";

bool is_true(const Field& tree, const char* name) { return tree.get(name, false).value() == true; }

// Normal form C, with one blank for each run of white space, without capitals.
std::u32string normalized(const std::u32string& text) {
    std::string utf8;
    for (const char32_t each : text) append_utf8(utf8, each);
    std::u32string out;
    for (const char32_t each : decoded(composed(utf8))) {
        const bool white = is_white(each);
        if (white && !out.empty() && out.back() == U' ') continue;
        if (each == U'\u0130') out += U"i\u0307";  // the only one that becomes two
        else out += white ? U' ' : lowered(each);
    }
    return out;
}

// Goes through the text: `found` is called with each added token, `rest` with each piece between them.
template <typename Found, typename Rest>
void take_apart(const std::u32string& text, const std::vector<std::pair<std::u32string, int64_t>>& added, Found found,
                Rest rest) {
    size_t from = 0;
    for (size_t i = 0; i < text.size();) {
        const std::pair<std::u32string, int64_t>* longest = nullptr;
        for (const auto& token : added) {
            if ((!longest || token.first.size() > longest->first.size()) &&
                text.compare(i, token.first.size(), token.first) == 0) {
                longest = &token;
            }
        }
        if (longest) {
            if (i > from) rest(text.substr(from, i - from));
            found(longest->second);
            from = i + longest->first.size();
        }
        i = std::max(from, i + !longest);
    }
    if (from < text.size()) rest(text.substr(from));
}

}  // namespace

ClipTokenizer::ClipTokenizer(const std::string& path, const TextSpec& spec)
    : ClipTokenizer(content_of(path), path, spec) {}

ClipTokenizer::ClipTokenizer(std::string_view content, const std::string& path, const TextSpec& spec) : spec_(spec) {
    try {
        const json::Value tree = parse(content, path);
        read(Field(tree, path));
    } catch (const Error& error) {
        throw Error(Status::bundle, concat(std::string(error.what()), ": not a tokenizer of CLIP's kind"), error.field);
    }
    const auto is_pad = [&](const auto& token) { return token.second == spec.pad_id; };
    if (!pairs_.knows(spec.pad_id) && std::none_of(added_.begin(), added_.end(), is_pad) &&
        std::none_of(added_normalized_.begin(), added_normalized_.end(), is_pad)) {
        refuse_bundle(path, concat(": has no token of the id ", spec.pad_id, " (field text.pad_id)"));
    }
}

void ClipTokenizer::read(const Field& file) {
    if (file["normalizer"].value() != json::read(NORMALIZER)) file["normalizer"].refuse(NORMALIZER);
    const std::vector<Field> parts = file["pre_tokenizer"]["pretokenizers"].list_of(2);
    const Field &words = parts[0], &bytes = parts[1], pattern = words["pattern"];
    const std::string regex = pattern["Regex"].text(), whole = concat(WHOLE_TOKENS, WORDS);
    if (regex == whole) literals_ = {U"<|startoftext|>", U"<|endoftext|>"};
    else if (regex != WORDS) pattern.refuse("CLIP's words");
    if (words["type"].text() != "Split" || words["behavior"].text() != "Removed" || !is_true(words, "invert")) {
        words.refuse("an inverted split that removes what is between words");
    }
    if (bytes["type"].text() != "ByteLevel" || is_true(bytes, "add_prefix_space") || !is_true(bytes, "use_regex")) {
        bytes.refuse("ByteLevel without a prefix, with its pattern");
    }
    pairs_ = BytePairs(file["model"]);
    read_ends(file["post_processor"]);
    file["added_tokens"].each([&](const Field& token) {
        const std::u32string content = decoded(token["content"].text());
        if (content.empty()) token["content"].refuse("text");
        for (const char* name : {"single_word", "lstrip", "rstrip"}) {
            if (is_true(token, name)) token[name].refuse("false");
        }
        const bool as_given = !is_true(token, "normalized");
        (as_given ? added_ : added_normalized_)
            .emplace_back(as_given ? content : normalized(content), token["id"].whole(0));
    });
}

// The tokens that begin and end every prompt.
void ClipTokenizer::read_ends(const Field& tree) {
    if (tree["type"].one_of({"RobertaProcessing", "TemplateProcessing"}) == "RobertaProcessing") {
        begin_ = tree["cls"].list_of(2)[1].whole(0);
        end_ = tree["sep"].list_of(2)[1].whole(0);
        return;
    }
    const std::vector<Field> single = tree["single"].list_of(3);
    single[1]["Sequence"];
    const auto id_of = [&](const Field& part) {
        return tree["special_tokens"][part["SpecialToken"]["id"].text()]["ids"].list_of(1)[0].whole(0);
    };
    begin_ = id_of(single[0]);
    end_ = id_of(single[2]);
}

std::vector<int64_t> ClipTokenizer::ids(std::string_view text, std::string& loss) const {
    Ids tokens;
    const auto add = [&](int64_t id) { tokens.push_back(id); };
    take_apart(decoded(text), added_, add, [&](const std::u32string& segment) {
        take_apart(normalized(segment), added_normalized_, add,
                   [&](const std::u32string& rest) { add_words(rest, tokens); });
    });
    const auto room = static_cast<size_t>(std::max<int64_t>(spec_.max_length - 2, 0));
    if (tokens.size() > room) {
        const size_t lost = tokens.size() - room;
        tokens.resize(room);
        loss = concat("prompt too long: left out the last ", lost, " token", lost == 1 ? "" : "s", ", beyond the ",
                      spec_.max_length, " that the text encoder reads (begin and end count)");
    }
    tokens.insert(tokens.begin(), begin_);
    tokens.push_back(end_);
    tokens.resize(static_cast<size_t>(spec_.max_length), spec_.pad_id);
    return tokens;
}

void ClipTokenizer::add_words(const std::u32string& text, Ids& out) const {
    const auto add = [&](size_t start, size_t end) {
        std::string word;
        for (size_t i = start; i < end; i++) append_utf8(word, text[i]);
        pairs_.encode(word, out);
    };
    const auto is_other = [](char32_t c) { return !is_white(c) && !is_letter(c) && !is_number(c); };
    const auto run = [&](size_t start, size_t most, auto&& belongs) {
        while (start < most && belongs(text[start])) start++;
        return start;
    };
    for (size_t i = 0; i < text.size();) {
        const std::u32string_view left = std::u32string_view(text).substr(i);
        size_t end = i;
        if (const size_t length = literal_at(left)) {
            // The bytes' own pattern takes it apart again, into signs and letters.
            for (end += length; i < end;) {
                const bool letters = is_letter(text[i]);
                const size_t start = i;
                i = run(i, end, [&](char32_t c) { return is_letter(c) == letters; });
                add(start, i);
            }
            continue;
        }
        for (const std::u32string_view contraction : CONTRACTIONS) {
            if (end == i && left.starts_with(contraction)) end += contraction.size();
        }
        if (end == i) end = run(i, text.size(), is_letter);
        if (end == i && is_number(text[i])) end = i + 1;
        if (end == i) end = run(i, text.size(), is_other);
        if (end > i) add(i, end);
        i = std::max(end, i + 1);
    }
}

size_t ClipTokenizer::literal_at(std::u32string_view text) const {
    for (const std::u32string& literal : literals_) {
        if (text.starts_with(literal)) return literal.size();
    }
    return 0;
}

}  // namespace ddm
