#include "bundle.h"

#include <sys/stat.h>
#include <algorithm>
#include <array>
#include <system_error>

#include "error.h"
#include "fields.h"
#include "files.h"
#include "text.h"

namespace ddm {
namespace {

constexpr int64_t LARGEST_FILE = 1 << 27;  // of those that are read into memory
constexpr const char* INDEX = "bundle.json";
constexpr const char* TEXT_GRAPH = "text_encoder.onnx";
constexpr std::array GRAPHS = {"conditioner.onnx", "denoiser.onnx", "decoder.onnx"};
constexpr const char* RUNTIME = "runtime.json";
constexpr std::array FORMAT_1 = {"config.json", "schedule.json", "codes.json"};
// Made from a bundle and added to it: checked when they are used.
constexpr std::array DERIVED = {"plans/", "calibrations/", "reports/", "tables/"};

bool is_there(const std::string& path, mode_t kind) {
    struct stat found;
    return ::stat(path.c_str(), &found) == 0 && (found.st_mode & S_IFMT) == kind;
}

std::string locate(const std::string& source) {
    if (source.find('\0') != source.npos)
        refuse_bundle("bundle", concat(" ", repr(source), ": no path: it holds a null"));
    const std::string path = clean_path(source);
    // The bundles that ship inside the Python package have no names here.
    if (!is_there(path, S_IFDIR)) refuse_bundle("bundle", concat(" ", repr(source), ": no such directory"));
    if (!is_there(join_path(path, INDEX), S_IFREG)) {
        refuse_bundle(path,
                      concat(": not a bundle (", INDEX, " is missing); a run is made into one by `ddm-rt export`"));
    }
    return path;
}

void check_name(const std::string& name, const Field& files) {
    const std::vector<std::string> parts = split(name, '/');
    const bool inside = !name.starts_with('/') && std::find(parts.begin(), parts.end(), "..") == parts.end() &&
                        clean_path(name) != "." && name.find_first_of(std::string_view("\\\0", 2)) == name.npos;
    if (!inside) files.fail(Status::bundle, concat(": ", repr(name), " is not a path inside the bundle"));
}

FileState check_file(const std::string& path, const FileEntry& entry) {
    if (!is_there(path, S_IFREG))
        refuse_bundle(path, concat(": missing; ", INDEX, " lists it with ", entry.bytes, " bytes"));
    try {
        const FileState state = state_of_file(path);
        if (static_cast<uint64_t>(state.bytes) != entry.bytes) {
            refuse_bundle(path,
                          concat(": truncated or extended: ", state.bytes, " bytes, ", INDEX, " says ", entry.bytes));
        }
        if (sha256_of_file(path) == entry.sha256) return state;
    } catch (const std::system_error& error) {
        refuse_bundle(path, concat(": cannot be read (", error.code().message(), "); a bundle must have it"));
    }
    refuse_bundle(path, concat(": altered: its sha256 differs from the one in ", INDEX));
}

// Whether the file is one of those that say, in either format, how to sample.
bool is_said(const std::string& name) {
    return name == RUNTIME || std::find(FORMAT_1.begin(), FORMAT_1.end(), name) != FORMAT_1.end();
}

// What the id of the bundle must have been that had the files of `hashes` beside the graphs and tokenizers of this one.
std::string former_id(Files files, const Field& hashes) {
    std::erase_if(files, [](const auto& each) { return is_said(each.first); });
    hashes.each_member([&](const std::string& name, const Field& hash) { files[name] = {hash.hash(), 0}; });
    return bundle_id(files);
}

Bundle read_bundle(const std::string& source, const std::function<void(uint64_t, uint64_t)>& checked) {
    const std::string path = locate(source), index_path = join_path(path, INDEX);
    const json::Value tree = parse(content_of(index_path), index_path);
    const Field index(tree, index_path);
    const int64_t format = index["schema_version"].whole();  // later formats may change everything else
    if (format != 1 && format != 2) {
        refuse_bundle(index_path, concat(": schema_version is ", format, "; this version reads 1 and 2"));
    }
    Bundle bundle{path, index["bundle_id"].hash(), {}, format, {}, {}, {}, {}};
    const Field files = index["files"];
    files.each_member([&](const std::string& name, const Field& entry) {
        bundle.files[name] = {entry["sha256"].hash(), static_cast<uint64_t>(entry["bytes"].whole(0))};
    });
    const auto must_list = [&](const std::string& name, const char* kind) {
        if (bundle.find(name)) return;
        files.fail(Status::bundle, concat(": ", name, " is not listed; a bundle ", kind, "must have it"));
    };
    if (format == 2) must_list(RUNTIME, "");
    else
        for (const char* name : FORMAT_1) must_list(name, "");
    for (const char* name : GRAPHS) must_list(name, "");
    const auto is_derived = [](const std::string& name) {
        return std::any_of(DERIVED.begin(), DERIVED.end(),
                           [&](const char* folder) { return name.starts_with(folder); });
    };
    uint64_t done = 0, total = 0;
    for (const auto& [name, entry] : bundle.files) total += is_derived(name) ? 0 : entry.bytes;
    for (auto& [name, entry] : bundle.files) {
        check_name(name, files);
        if (is_derived(name)) continue;
        entry.checked = check_file(bundle.file(name), entry);
        if (checked) checked(done += entry.bytes, total);
    }
    if (bundle.bundle_id != ddm::bundle_id(bundle.files)) {
        index["bundle_id"].fail(Status::bundle, " does not match the files it lists");
    }
    index.get("former", json::Value::array()).each([&](const Field& former) {
        bundle.former_ids.push_back(former["bundle_id"].hash());
        if (bundle.former_ids.back() == former_id(bundle.files, former["files"])) return;
        former["bundle_id"].fail(Status::bundle, " does not match the files it lists");
    });
    const auto read = [&](const char* name) { return parse(content_of(bundle.file(name)), bundle.file(name)); };
    const auto fields = [&](const json::Value& content, const char* name) { return Field(content, bundle.file(name)); };
    const json::Value said = read(format == 2 ? RUNTIME : FORMAT_1[0]);
    Runtime runtime;
    if (format == 2) {
        runtime = Runtime::of_format_2(fields(said, RUNTIME));
    } else {
        const json::Value schedule = read(FORMAT_1[1]), codes = read(FORMAT_1[2]);
        runtime =
            Runtime::of_format_1(fields(said, FORMAT_1[0]), fields(schedule, FORMAT_1[1]), fields(codes, FORMAT_1[2]));
    }
    bundle.config = std::move(runtime.config);
    bundle.codes = std::move(runtime.codes);
    bundle.schedule = std::move(runtime.schedule);
    if (!bundle.config.prompt_free) {
        must_list(TEXT_GRAPH, "with prompts ");
        for (const TextSpec& spec : bundle.config.text) must_list(spec.tokenizer, "with prompts ");
    }
    return bundle;
}

}  // namespace

std::string content_of(const std::string& path) {
    try {
        if (const int64_t bytes = state_of_file(path).bytes; bytes > LARGEST_FILE) {
            refuse_bundle(path, concat(": ", bytes, " bytes; expected at most ", LARGEST_FILE));
        }
        return read_file(path);
    } catch (const std::system_error& error) {
        refuse_bundle(path, concat(": cannot be read (", error.code().message(), "); a bundle must have it"));
    }
}

Bundle Bundle::load(const std::string& source, const std::function<void(uint64_t, uint64_t)>& checked) {
    try {
        return read_bundle(source, checked);
    } catch (const Error& error) {  // of a field
        throw Error(error.status == Status::input ? Status::bundle : error.status, error.what(), error.field);
    }
}

std::string Bundle::runtime_path() const { return file(format == 2 ? RUNTIME : FORMAT_1[0]); }

bool Bundle::is_of(std::string_view id) const {
    return id == bundle_id || std::find(former_ids.begin(), former_ids.end(), id) != former_ids.end();
}

const FileEntry* Bundle::find(std::string_view name) const {
    const auto found = files.find(name);
    return found == files.end() ? nullptr : &found->second;
}

std::string Bundle::file(std::string_view name) const { return join_path(path, name); }

void Bundle::check_unchanged() const {
    for (const auto& [name, entry] : files) {
        if (!entry.checked || (is_there(file(name), S_IFREG) && state_of_file(file(name)) == *entry.checked)) continue;
        refuse_bundle(file(name), concat(": was written after its hash was checked; open the bundle again"));
    }
}

void Bundle::check_directory(const std::string& relative) const {
    bool any = false;
    for (const auto& [name, entry] : files) {
        if (!name.starts_with(relative + "/")) continue;
        check_file(file(name), entry);
        any = true;
    }
    if (!any) refuse_bundle(file(INDEX), concat(": field files: nothing below ", relative, " is listed"));
}

std::string bundle_id(const Files& files) {
    std::string content;
    for (const auto& [name, entry] : files) {
        const std::string graph = name.substr(0, name.find(".onnx")) + ".onnx";
        const bool decides = is_said(name) || name.starts_with("tokenizer/") || graph == TEXT_GRAPH ||
                             std::find(GRAPHS.begin(), GRAPHS.end(), graph) != GRAPHS.end();
        if (decides) content += name + '\0' + entry.sha256 + '\n';
    }
    return sha256_of(content);
}

}  // namespace ddm
