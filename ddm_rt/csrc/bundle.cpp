#include "bundle.h"

#include <algorithm>
#include <array>
#include <sys/stat.h>
#include <system_error>

#include "error.h"
#include "files.h"
#include "runtime.h"
#include "shape.h"
#include "text.h"

namespace ddm {
namespace {

constexpr const char* INDEX = "bundle.json";
constexpr const char* TEXT_GRAPH = "text_encoder.onnx";
constexpr std::array GRAPHS = {"conditioner.onnx", "denoiser.onnx", "decoder.onnx"};
constexpr const char* RUNTIME = "runtime.json";
constexpr std::array FORMAT_1 = {"config.json", "schedule.json", "codes.json"};
// Made from a bundle and added to it: checked when they are used.
constexpr std::array DERIVED = {"plans/", "calibrations/", "reports/", "tables/"};

// What is read of bundle.json before anything else: later formats may change everything else.
const shape::Check& index_head() {
    static const shape::Check check = shape::open_object({{"schema_version", shape::integer()}});
    return check;
}

const shape::Check& index_file() {
    using namespace shape;
    static const Check entry = open_object({{"sha256", hash()}, {"bytes", integer({.ge = 0})}});
    static const Check former = open_object({{"bundle_id", hash()}, {"files", mapping(hash())}});
    static const Check check = open_object({
        {"schema_version", integer()},
        {"bundle_id", hash()},
        {"former", list(former), "[]"},
        {"files", mapping(entry)},
        {"provenance", mapping(anything())},
    });
    return check;
}

std::string read(const std::string& path) {
    try {
        return read_file(path);
    } catch (const std::system_error& error) {
        refuse_bundle(concat(path, ": cannot be read (", error.code().message(), "); a bundle must have it"));
    }
}

bool is_file(const std::string& path) {
    struct stat found;
    return ::stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}

bool is_directory(const std::string& path) {
    struct stat found;
    return ::stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode);
}

std::string locate(const std::string& source) {
    if (source.find('\0') != source.npos) refuse_bundle(concat("bundle ", repr(source), ": no path: it holds a null"));
    const std::string path = clean_path(source);
    // The bundles that ship inside the Python package have no names here.
    if (!is_directory(path)) refuse_bundle(concat("bundle ", repr(source), ": no such directory"));
    if (!is_file(join_path(path, INDEX))) {
        refuse_bundle(concat(path, ": not a bundle (", INDEX, " is missing); a run is made into one by `ddm-rt export`"));
    }
    return path;
}

json::Value read_index(const std::string& path) {
    const json::Value tree = shape::parse(shape::anything(), read(path), path);
    const int64_t format = shape::parse_tree(index_head(), tree, path)["schema_version"].integer();
    if (format != 1 && format != 2) {
        refuse_bundle(concat(path, ": schema_version is ", format, "; this version reads 1 and 2"));
    }
    return shape::parse_tree(index_file(), tree, path);
}

void check_name(const std::string& name, const std::string& index) {
    const std::vector<std::string> parts = split(name, '/');
    const bool inside = !name.starts_with('/') && std::find(parts.begin(), parts.end(), "..") == parts.end() &&
                        clean_path(name) != "." && name.find('\\') == name.npos && name.find('\0') == name.npos;
    if (!inside) refuse_bundle(concat(index, ": field files: ", repr(name), " is not a path inside the bundle"));
}

FileState check_file(const std::string& path, const FileEntry& entry) {
    if (!is_file(path)) refuse_bundle(concat(path, ": missing; ", INDEX, " lists it with ", entry.bytes, " bytes"));
    try {
        const FileState state = state_of_file(path);
        if (static_cast<uint64_t>(state.bytes) != entry.bytes) {
            refuse_bundle(concat(path, ": truncated or extended: ", state.bytes, " bytes, ", INDEX, " says ", entry.bytes));
        }
        if (sha256_of_file(path) == entry.sha256) return state;
    } catch (const std::system_error& error) {
        refuse_bundle(concat(path, ": cannot be read (", error.code().message(), "); a bundle must have it"));
    }
    refuse_bundle(concat(path, ": altered: its sha256 differs from the one in ", INDEX));
}

bool is_derived(const std::string& name) {
    return std::any_of(DERIVED.begin(), DERIVED.end(), [&](const char* folder) { return name.starts_with(folder); });
}

// Whether the file is one of those that say, in either format, how to sample.
bool is_said(const std::string& name) {
    return name == RUNTIME || std::find(FORMAT_1.begin(), FORMAT_1.end(), name) != FORMAT_1.end();
}

// What the id of the bundle must have been that had the files of `hashes` beside the graphs and tokenizers of this one.
std::string former_id(std::vector<std::pair<std::string, FileEntry>> files, const json::Value& hashes) {
    std::erase_if(files, [&](const auto& each) { return is_said(each.first) || hashes.find(each.first); });
    for (const auto& [name, sha256] : hashes.object()) files.emplace_back(name, FileEntry{sha256.text(), 0});
    return bundle_id(files);
}

}  // namespace

Bundle Bundle::load(const std::string& source) {
    const std::string path = locate(source), index_path = join_path(path, INDEX);
    const json::Value index = read_index(index_path);
    const int64_t format = index["schema_version"].integer();
    Bundle bundle{path, index["bundle_id"].text(), {}, format, {}, {}, {}, {}};
    for (const auto& [name, entry] : index["files"].object()) {
        bundle.files.emplace_back(name, FileEntry{entry["sha256"].text(), entry["bytes"].natural()});
    }
    const auto must_list = [&](const std::string& name, const char* kind) {
        if (bundle.find(name)) return;
        refuse_bundle(concat(index_path, ": field files: ", name, " is not listed; a bundle ", kind, "must have it"));
    };
    if (format == 2) must_list(RUNTIME, "");
    else for (const char* name : FORMAT_1) must_list(name, "");
    for (const char* name : GRAPHS) must_list(name, "");
    for (auto& [name, entry] : bundle.files) {
        check_name(name, index_path);
        if (!is_derived(name)) entry.checked = check_file(bundle.file(name), entry);
    }
    if (bundle.bundle_id != ddm::bundle_id(bundle.files)) {
        refuse_bundle(concat(index_path, ": field bundle_id does not match the files it lists"));
    }
    for (const json::Value& former : index["former"].list()) {
        bundle.former_ids.push_back(former["bundle_id"].text());
        if (bundle.former_ids.back() == former_id(bundle.files, former["files"])) continue;
        refuse_bundle(concat(index_path, ": field former.", bundle.former_ids.size() - 1,
                      ".bundle_id does not match the files it lists"));
    }
    const auto each = [](auto function) {
        return std::array{function(FORMAT_1[0]), function(FORMAT_1[1]), function(FORMAT_1[2])};
    };
    const auto path_of = [&](const char* name) { return bundle.file(name); };
    const auto content = [&](const char* name) { return read(bundle.file(name)); };
    Runtime said = format == 2 ? Runtime::of_format_2(content(RUNTIME), path_of(RUNTIME))
                               : Runtime::of_format_1(each(content), each(path_of));
    bundle.config = std::move(said.config);
    bundle.codes = std::move(said.codes);
    bundle.schedule = std::move(said.schedule);
    if (!bundle.config.prompt_free) {
        must_list(TEXT_GRAPH, "with prompts ");
        for (const TextSpec& spec : bundle.config.text) must_list(spec.tokenizer, "with prompts ");
    }
    return bundle;
}

std::string Bundle::runtime_path() const { return file(format == 2 ? RUNTIME : FORMAT_1[0]); }

bool Bundle::is_of(std::string_view id) const {
    return id == bundle_id || std::find(former_ids.begin(), former_ids.end(), id) != former_ids.end();
}

const FileEntry* Bundle::find(std::string_view name) const {
    const auto found = std::find_if(files.begin(), files.end(), [&](const auto& each) { return each.first == name; });
    return found == files.end() ? nullptr : &found->second;
}

std::string Bundle::file(std::string_view name) const { return join_path(path, name); }

void Bundle::check_unchanged() const {
    for (const auto& [name, entry] : files) {
        if (!entry.checked || (is_file(file(name)) && state_of_file(file(name)) == *entry.checked)) continue;
        refuse_bundle(concat(file(name), ": was written while the bundle was opened; open it again"));
    }
}

void Bundle::check_directory(const std::string& relative) const {
    bool any = false;
    for (const auto& [name, entry] : files) {
        if (!name.starts_with(relative + "/")) continue;
        check_file(file(name), entry);
        any = true;
    }
    if (!any) refuse_bundle(concat(file(INDEX), ": field files: nothing below ", relative, " is listed"));
}

std::string bundle_id(const std::vector<std::pair<std::string, FileEntry>>& files) {
    auto sorted = files;
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string content;
    for (const auto& [name, entry] : sorted) {
        const std::string graph = name.substr(0, name.find(".onnx")) + ".onnx";
        const auto listed = [&](const auto& names, const std::string& wanted) {
            return std::find(names.begin(), names.end(), wanted) != names.end();
        };
        if (is_said(name) || name.starts_with("tokenizer/") || listed(GRAPHS, graph) || graph == TEXT_GRAPH) {
            content += name + '\0' + entry.sha256 + '\n';
        }
    }
    return sha256_of(content);
}

}  // namespace ddm
