// A tokenizer.json says how text is taken apart, in parts that could be anything; CLIP's are one set, which is what is
// programmed here, and anything else is refused by the name of its field.
#include "clip_tokenizer.h"

#include <algorithm>
#include <array>
#include <system_error>

#include "error.h"
#include "files.h"
#include "text.h"

namespace ddm {
namespace {

using unicode::Letter;
using unicode::Letters;

constexpr size_t kQuoted = 200;  // characters of what a warning quotes

constexpr std::string_view kWords = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
constexpr std::string_view kWholeTokens = "<\\|startoftext\\|>|<\\|endoftext\\|>|";
constexpr std::array<std::string_view, 7> kContractions{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
constexpr const char* kNormalizer =
    R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, )"
    R"({"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]})";

[[noreturn]] void refuse(const std::string& field, const std::string& expected) {
    throw Error(concat("field ", field, ": expected ", expected));
}

const json::Value& member(const json::Value& tree, std::string_view name, const std::string& place) {
    const json::Value* value = tree.as<json::Object>() ? tree.find(name) : nullptr;
    if (!value) refuse(place + std::string(name), "one, as CLIP's tokenizer has it");
    return *value;
}

bool is_true(const json::Value& tree, std::string_view name) {
    const json::Value* value = tree.as<json::Object>() ? tree.find(name) : nullptr;
    const bool* flag = value ? value->as<bool>() : nullptr;
    return flag && *flag;
}

bool is_text(const json::Value& tree, std::string_view name, std::string_view expected) {
    const json::Value* value = tree.as<json::Object>() ? tree.find(name) : nullptr;
    const std::string* text = value ? value->as<std::string>() : nullptr;
    return text && *text == expected;
}

int64_t id_in(const json::Value& value, const std::string& field) {
    const json::Integer* number = value.as<json::Integer>();
    if (!number || number->negative || number->wide) refuse(field, "a token's id");
    return static_cast<int64_t>(number->magnitude);
}

Letters normalized(const Letters& text) { return lowered(with_single_blanks(composed(text))); }

bool starts_at(const Letters& text, size_t start, const Letters& wanted) {
    return start + wanted.size() <= text.size() &&
           std::equal(wanted.begin(), wanted.end(), text.begin() + static_cast<std::ptrdiff_t>(start),
                      [](const Letter& a, const Letter& b) { return a.character == b.character; });
}

Letters part(const Letters& text, size_t start, size_t end) {
    return {text.begin() + static_cast<std::ptrdiff_t>(start), text.begin() + static_cast<std::ptrdiff_t>(end)};
}

// Goes through the text: `found` is called with each added token, `rest` with each piece between them.
template <typename Added, typename Found, typename Rest>
void take_apart(const Letters& text, const Added& added, Found found, Rest rest) {
    size_t from = 0;
    for (size_t i = 0; i < text.size();) {
        size_t longest = 0;
        int64_t id = 0;
        for (const auto& [content, own] : added) {
            if (content.size() > longest && starts_at(text, i, content)) {
                longest = content.size();
                id = own;
            }
        }
        if (longest == 0) {
            i++;
            continue;
        }
        if (i > from) rest(part(text, from, i));
        found(id, text[i + longest - 1].last);
        i += longest;
        from = i;
    }
    if (from < text.size()) rest(part(text, from, text.size()));
}

std::string read_tokenizer(const std::string& path) {
    try {
        return read_file(path);
    } catch (const std::system_error& error) {
        throw Error(Status::bundle, concat(path, ": cannot be read (", error.code().message(),
                                           "); a bundle with prompts must have it"));
    }
}

}  // namespace

ClipTokenizer::ClipTokenizer(const std::string& path, const TextSpec& spec)
    : ClipTokenizer(read_tokenizer(path), path, spec) {}

ClipTokenizer::ClipTokenizer(std::string_view content, const std::string& path, const TextSpec& spec) : spec_(spec) {
    try {
        read(json::read(content));
    } catch (const Error& error) {
        throw Error(Status::bundle, concat(path, ": not a tokenizer (", std::string(error.what()), ")"));
    }
    const auto is_pad = [&](const auto& token) { return token.second == spec.pad_id; };
    if (!pairs_.knows(spec.pad_id) && std::none_of(added_.begin(), added_.end(), is_pad) &&
        std::none_of(added_normalized_.begin(), added_normalized_.end(), is_pad)) {
        throw Error(Status::bundle, concat(path, ": has no token of the id ", spec.pad_id,
                                           " (field text.pad_id)"));
    }
}

void ClipTokenizer::read(const json::Value& tree) {
    if (json::write(member(tree, "normalizer", "")) != kNormalizer) refuse("normalizer", kNormalizer);

    const json::Value& apart = member(tree, "pre_tokenizer", "");
    const json::List* parts = member(apart, "pretokenizers", "pre_tokenizer.").as<json::List>();
    if (!parts || parts->size() != 2) refuse("pre_tokenizer", "a split into words, then into bytes");
    const json::Value& split = (*parts)[0];
    const json::Value& pattern = member(split, "pattern", "pre_tokenizer.0.");
    const bool whole = is_text(pattern, "Regex", concat(kWholeTokens, kWords));
    if (!whole && !is_text(pattern, "Regex", kWords)) refuse("pre_tokenizer.0.pattern", "CLIP's words");
    if (!is_text(split, "type", "Split") || !is_text(split, "behavior", "Removed") || !is_true(split, "invert")) {
        refuse("pre_tokenizer.0", "an inverted split that removes what is between words");
    }
    const json::Value& bytes = (*parts)[1];
    if (!is_text(bytes, "type", "ByteLevel") || is_true(bytes, "add_prefix_space") || !is_true(bytes, "use_regex")) {
        refuse("pre_tokenizer.1", "ByteLevel without a prefix, with its pattern");
    }
    if (whole) literals_ = {unicode::decode("<|startoftext|>"), unicode::decode("<|endoftext|>")};

    pairs_ = BytePairs(member(tree, "model", ""));
    read_ends(member(tree, "post_processor", ""));

    const json::List* added = member(tree, "added_tokens", "").as<json::List>();
    if (!added) refuse("added_tokens", "a list");
    for (size_t i = 0; i < added->size(); i++) {
        const json::Value& token = (*added)[i];
        const std::string place = concat("added_tokens.", i, ".");
        const std::string* content = member(token, "content", place).as<std::string>();
        if (!content || content->empty()) refuse(place + "content", "text");
        for (const char* name : {"single_word", "lstrip", "rstrip"}) {
            if (is_true(token, name)) refuse(place + name, "false");
        }
        const int64_t id = id_in(member(token, "id", place), place + "id");
        const Letters letters = unicode::decode(*content);
        if (is_true(token, "normalized")) {
            added_normalized_.emplace_back(normalized(letters), id);
        } else {
            added_.emplace_back(letters, id);
        }
    }
}

// The tokens that begin and end every prompt.
void ClipTokenizer::read_ends(const json::Value& tree) {
    const std::string field = "post_processor";
    if (is_text(tree, "type", "RobertaProcessing")) {
        for (const auto& [name, id] : {std::pair{"cls", &begin_}, std::pair{"sep", &end_}}) {
            const json::List* both = member(tree, name, "post_processor.").as<json::List>();
            if (!both || both->size() != 2) refuse(concat(field, ".", std::string(name)), "a token and its id");
            *id = id_in((*both)[1], field);
        }
        return;
    }
    if (!is_text(tree, "type", "TemplateProcessing")) refuse(field, "RobertaProcessing or TemplateProcessing");
    const json::List* single = member(tree, "single", "post_processor.").as<json::List>();
    if (!single || single->size() != 3 || !(*single)[1].as<json::Object>() || !(*single)[1].find("Sequence")) {
        refuse(field + ".single", "a token, the text and a token");
    }
    for (const auto& [place, id] : {std::pair{0, &begin_}, std::pair{2, &end_}}) {
        const json::Value& name = member(member((*single)[place], "SpecialToken", field + "."), "id", field + ".");
        if (!name.as<std::string>()) refuse(field + ".single", "names of tokens");
        const json::Value& token = member(member(tree, "special_tokens", field + "."), name.text(), field + ".");
        const json::List* ids = member(token, "ids", field + ".").as<json::List>();
        if (!ids || ids->size() != 1) refuse(field + ".special_tokens", "one id each");
        *id = id_in((*ids)[0], field);
    }
}

std::vector<int64_t> ClipTokenizer::ids(std::string_view text, std::string& loss) const {
    const Letters letters = unicode::decode(text);
    Tokens tokens;
    take_apart(
        letters, added_, [&](int64_t id, size_t end) { tokens.push_back({id, end}); },
        [&](const Letters& rest) { add_segment(rest, tokens); });

    const auto room = static_cast<size_t>(std::max<int64_t>(spec_.max_length - 2, 0));
    if (tokens.size() > room) {
        const size_t lost = tokens.size() - room;
        tokens.resize(room);
        size_t end = 0;
        for (const Token& token : tokens) end = std::max(end, token.end);
        std::string rest;
        for (size_t i = end; i < letters.size(); i++) unicode::append_utf8(rest, letters[i].character);
        Letters words = unicode::decode(strip(rest));
        std::string quoted;
        for (size_t i = 0; i < std::min(words.size(), kQuoted); i++) unicode::append_utf8(quoted, words[i].character);
        if (words.size() > kQuoted) quoted += "…";
        loss = concat("prompt too long: left out ", lost, " token", lost == 1 ? "" : "s", " beyond the ",
                      spec_.max_length, " that the text encoder reads (begin and end count): ", repr(quoted));
    }
    std::vector<int64_t> found{begin_};
    for (const Token& token : tokens) found.push_back(token.id);
    found.push_back(end_);
    found.resize(static_cast<size_t>(spec_.max_length), spec_.pad_id);
    return found;
}

void ClipTokenizer::add_segment(const Letters& text, Tokens& out) const {
    take_apart(
        normalized(text), added_normalized_, [&](int64_t id, size_t end) { out.push_back({id, end}); },
        [&](const Letters& rest) { add_words(rest, out); });
}

void ClipTokenizer::add_words(const Letters& text, Tokens& out) const {
    const auto add = [&](size_t start, size_t end) {
        std::string word;
        std::vector<size_t> ends;  // of each byte, in characters of the text
        for (size_t i = start; i < end; i++) {
            unicode::append_utf8(word, text[i].character);
            ends.resize(word.size(), text[i].last);
        }
        for (const auto& [id, byte] : pairs_.encode(word)) out.push_back({id, ends[byte - 1]});
    };
    const auto is_other = [](char32_t c) {
        return !unicode::is_space(c) && !unicode::is_letter(c) && !unicode::is_number(c);
    };
    const auto run = [&](size_t start, auto&& belongs) {
        size_t end = start;
        while (end < text.size() && belongs(text[end].character)) end++;
        return end;
    };
    for (size_t i = 0; i < text.size();) {
        if (const size_t length = literal_at(text, i)) {
            // The bytes' own pattern takes it apart again, into signs and letters.
            for (size_t start = i; start < i + length;) {
                const bool letters = unicode::is_letter(text[start].character);
                size_t end = start;
                while (end < i + length && unicode::is_letter(text[end].character) == letters) end++;
                add(start, end);
                start = end;
            }
            i += length;
            continue;
        }
        size_t end = i;
        for (const std::string_view contraction : kContractions) {
            if (starts_at(text, i, unicode::decode(contraction))) {
                end = i + contraction.size();
                break;
            }
        }
        const char32_t character = text[i].character;
        if (end == i) end = run(i, unicode::is_letter);
        if (end == i && unicode::is_number(character)) end = i + 1;
        if (end == i) end = run(i, is_other);
        if (end > i) add(i, end);
        i = std::max(end, i + 1);
    }
}

size_t ClipTokenizer::literal_at(const Letters& text, size_t start) const {
    for (const Letters& literal : literals_) {
        if (starts_at(text, start, literal)) return literal.size();
    }
    return 0;
}

}  // namespace ddm
