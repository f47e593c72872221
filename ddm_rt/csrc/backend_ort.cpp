#include "backend_ort.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <semaphore>
#include <set>

#include "error.h"
#include "onnx_files.h"
#include "ort_library.h"
#include "text.h"

namespace ddm {
namespace {

const std::set<std::string> kPooled{"text_embeds"};  // what the text encoder gives besides the context

ONNXTensorElementDataType type_of(DType dtype) {
    switch (dtype) {
        case DType::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case DType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

constexpr const char* kCpu = "CPUExecutionProvider";
constexpr std::string_view kSuffix = "ExecutionProvider";

std::string lower(std::string text) {
    for (char& letter : text) letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    return text;
}

// The name that ONNX Runtime has for it. Throws Error where it wasn't built with one.
std::string provider_named(const std::string& name) {
    if (is_cpu(name)) return kCpu;
    const std::vector<std::string> there = Ort::GetAvailableProviders();
    for (const std::string& each : there) {
        if (lower(each) == lower(name) || lower(each) == lower(name + std::string(kSuffix))) return each;
    }
    throw Error(Status::backend,
                concat("provider ", repr(name), " is not in this ONNX Runtime; available here: ", join(", ", there)),
                "provider");
}

// A provider that options are made for first.
template <typename Options>
void append(OrtStatus* (*create)(Options**),
            OrtStatus* (*update)(Options*, const char* const*, const char* const*, size_t),
            OrtStatus* (*add)(OrtSessionOptions*, const Options*), void (*release)(Options*),
            Ort::SessionOptions& options, const std::vector<const char*>& keys,
            const std::vector<const char*>& values) {
    Options* made = nullptr;
    Ort::ThrowOnError(create(&made));
    const std::unique_ptr<Options, void (*)(Options*)> owned(made, release);
    Ort::ThrowOnError(update(made, keys.data(), values.data(), keys.size()));
    Ort::ThrowOnError(add(options, made));
}

void add_provider(Ort::SessionOptions& options, const std::string& provider, const BackendOptions& chosen, bool half) {
    std::vector<std::pair<std::string, std::string>> given;
    // As in ddm_rt/engine/ort/sessions.py: no search for convolutions, and no TF32 where numbers are float32.
    if (provider.starts_with("CUDA")) given = {{"cudnn_conv_algo_search", "HEURISTIC"}, {"use_tf32", half ? "1" : "0"}};
    for (const auto& [key, value] : chosen.provider_options) {
        std::erase_if(given, [&key = key](const auto& each) { return each.first == key; });
        given.emplace_back(key, value);
    }
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : given) keys.push_back(key.c_str()), values.push_back(value.c_str());
    const OrtApi& api = Ort::GetApi();
    if (provider.starts_with("CUDA")) {
        append(api.CreateCUDAProviderOptions, api.UpdateCUDAProviderOptions,
               api.SessionOptionsAppendExecutionProvider_CUDA_V2, api.ReleaseCUDAProviderOptions, options, keys,
               values);
    } else if (provider.starts_with("Tensorrt")) {
        append(api.CreateTensorRTProviderOptions, api.UpdateTensorRTProviderOptions,
               api.SessionOptionsAppendExecutionProvider_TensorRT_V2, api.ReleaseTensorRTProviderOptions, options, keys,
               values);
    } else {
        // Its short name, which ONNX Runtime has in capitals for some.
        std::string name = provider.substr(0, provider.size() - kSuffix.size());
        if (name == "Azure" || name == "Xnnpack") std::transform(name.begin(), name.end(), name.begin(), ::toupper);
        Ort::ThrowOnError(
            api.SessionOptionsAppendExecutionProvider(options, name.c_str(), keys.data(), values.data(), keys.size()));
    }
}

void ORT_API_CALL tell(void* log, OrtLoggingLevel level, const char*, const char*, const char*, const char* message) {
    const auto known = std::min<int>(level, static_cast<int>(Level::error));
    (*static_cast<const Log*>(log))(static_cast<Level>(known), concat("ONNX Runtime: ", std::string(message)));
}

struct Opening {
    const OrtLibrary& library;
    const OrtOptions& options;
    const std::string& provider;
    bool half;
    std::counting_semaphore<>& turns;  // so many calls run at a time
};

// One graph with the names of what it takes and gives.
class Graph {
public:
    Graph(std::string name, std::string path, const Opening& opening)
        : name_(std::move(name)), path_(std::move(path)), turns_(opening.turns) {
        const std::string& provider = opening.provider;
        Ort::SessionOptions options;
        try {
            if (provider != kCpu) add_provider(options, provider, opening.options.chosen, opening.half);
        } catch (const Ort::Exception& error) {
            throw Error(Status::backend, concat("provider ", provider, " doesn't start: ", std::string(error.what())),
                        "provider");
        }
        try {
            const Log& log = opening.options.log;
            if (log.tell) {
                Ort::ThrowOnError(Ort::GetApi().SetUserLoggingFunction(options, tell, const_cast<Log*>(&log)));
                options.SetLogSeverityLevel(static_cast<int>(log.least));
            }
            options.SetIntraOpNumThreads(static_cast<int>(opening.options.threads));
            options.SetInterOpNumThreads(1);
            options.SetExecutionMode(ORT_SEQUENTIAL);
            options.SetDeterministicCompute(true);
            // How long waiting threads spin, and why, stands in ddm_rt/engine/ort/sessions.py.
            options.AddConfigEntry("session.intra_op.spin_duration_us", "1000");
            session_ = Ort::Session(opening.library.environment(), path_.c_str(), options);
            Ort::AllocatorWithDefaultOptions allocator;
            for (size_t i = 0; i < session_.GetInputCount(); i++) {
                inputs_.emplace_back(session_.GetInputNameAllocated(i, allocator).get());
            }
            for (size_t i = 0; i < session_.GetOutputCount(); i++) {
                outputs_.emplace_back(session_.GetOutputNameAllocated(i, allocator).get());
            }
        } catch (const Ort::Exception& error) {
            const std::string on = provider == kCpu ? "" : concat(" on ", provider);
            throw Error(provider == kCpu ? Status::bundle : Status::backend,
                        concat(path_, ": not a graph that ONNX Runtime ", opening.library.version(), " runs", on, ": ",
                               std::string(error.what())),
                        path_);
        }
    }

    // Throws Error where inputs or outputs (`side`) aren't what the bundle's `field` says.
    void check(const std::string& side, std::vector<std::string> expected, const std::string& field) const {
        std::vector<std::string> found = side == "inputs" ? inputs_ : outputs_;
        const std::string words = concat(path_, ": ", side, " are ", join(", ", found), "; the bundle says ",
                                         join(", ", expected), " (field ", field, ")");
        std::sort(found.begin(), found.end());
        std::sort(expected.begin(), expected.end());
        if (found != expected) throw Error(Status::bundle, words, field);
    }

    // Outputs with a row for each one of the inputs, of which there are `rows`.
    Cond run(const std::map<std::string, const Array*>& feeds, size_t rows) const {
        try {
            std::vector<const char*> names, output_names;
            std::vector<Ort::Value> values;
            const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
            for (const std::string& input : inputs_) {
                const Array& array = *feeds.at(input);
                names.push_back(input.c_str());
                values.push_back(Ort::Value::CreateTensor(memory, const_cast<std::byte*>(array.bytes.data()),
                                                          array.bytes.size(), array.shape.data(), array.shape.size(),
                                                          type_of(array.dtype)));
            }
            for (const std::string& output : outputs_) output_names.push_back(output.c_str());
            turns_.acquire();
            const std::unique_ptr<std::counting_semaphore<>, void (*)(std::counting_semaphore<>*)> turn(
                &turns_, [](auto* turns) { turns->release(); });
            // Run is const in all but name: sessions may be run from several threads at a time.
            const std::vector<Ort::Value> found =
                const_cast<Ort::Session&>(session_).Run(Ort::RunOptions{nullptr}, names.data(), values.data(),
                                                        values.size(), output_names.data(), output_names.size());
            Cond outputs;
            for (size_t i = 0; i < found.size(); i++) outputs.emplace_back(outputs_[i], copy(found[i], rows));
            return outputs;
        } catch (const Ort::Exception& error) {
            throw about(name_ + ".onnx",
                        concat(" refused its inputs (", shapes(feeds), "): ", std::string(error.what())));
        }
    }

    // As `run`, of a graph whose first output is what it is there for, and float32.
    Array first(const std::map<std::string, const Array*>& feeds, size_t rows) const {
        Cond outputs = run(feeds, rows);
        if (outputs.empty() || outputs[0].second.dtype != DType::float32) {
            throw about(Status::bundle, path_, concat(": gives no float32; expected it"));
        }
        return std::move(outputs[0].second);
    }

private:
    std::string shapes(const std::map<std::string, const Array*>& feeds) const {
        std::vector<std::string> words;
        for (const std::string& input : inputs_) {
            words.push_back(concat(input, " ", in_words(feeds.at(input)->shape)));
        }
        return join(", ", words);
    }

    static std::string in_words(const std::vector<int64_t>& shape) {
        std::vector<std::string> sides;
        for (const int64_t side : shape) sides.push_back(std::to_string(side));
        return concat("[", join(", ", sides), "]");
    }

    Array copy(const Ort::Value& value, size_t rows) const {
        const auto info = value.GetTensorTypeAndShapeInfo();
        const std::vector<int64_t> shape = info.GetShape();
        if (shape.empty() || shape[0] != static_cast<int64_t>(rows)) {
            throw about(Status::bundle, path_,
                        concat(": gives ", in_words(shape), " for a batch of ", rows, "; expected a row for each"));
        }
        for (const DType dtype : {DType::float32, DType::int64, DType::float16}) {
            if (info.GetElementType() != type_of(dtype)) continue;
            Array array(dtype, shape);
            if (!array.bytes.empty()) std::memcpy(array.bytes.data(), value.GetTensorRawData(), array.bytes.size());
            return array;
        }
        throw about(Status::bundle, path_, concat(": gives a type other than float32, float16 or int64"));
    }

    std::string name_, path_;
    std::counting_semaphore<>& turns_;
    Ort::Session session_{nullptr};
    std::vector<std::string> inputs_, outputs_;
};

std::vector<std::string> names_of(const std::vector<TensorSpec>& specs) {
    std::vector<std::string> names;
    for (const TensorSpec& spec : specs) names.push_back(spec.name);
    return names;
}

class OrtBackend : public Backend {
public:
    OrtBackend(const Bundle& bundle, std::shared_ptr<OrtLibrary> library, OrtOptions options)
        : library_(std::move(library)), options_(std::move(options)),
          provider_(provider_named(options_.chosen.provider)), bundle_(bundle), config_(bundle.config),
          num_codes_(static_cast<int64_t>(bundle.codes.num_codes())),
          turns_(static_cast<std::ptrdiff_t>(options_.calls_at_a_time)),
          made_by_{"onnxruntime", config_.precision, options_.threads, {{"onnxruntime", library_->version()}}},
          conditioner_("conditioner", graph_of(bundle, "conditioner"), opening()),
          denoiser_("denoiser", graph_of(bundle, "denoiser"), opening()),
          decoder_("decoder", graph_of(bundle, "decoder"), opening()) {
        if (provider_ != kCpu) made_by_.versions.emplace_back("provider", provider_);
        made_by_.versions.emplace_back("libddm_rt", DDM_RT_VERSION);
        if (!config_.prompt_free) graph_of(bundle, "text_encoder");  // it is opened later
        const std::vector<std::string> cond = names_of(config_.cond);
        std::vector<std::string> given{"context"}, taken{"x_t", "t"};
        if (num_codes_) given.insert(given.end(), {"code", "indicator_scale"});
        for (const TensorSpec& spec : config_.added) given.push_back(spec.name);
        taken.insert(taken.end(), cond.begin(), cond.end());
        conditioner_.check("inputs", given, "added");
        conditioner_.check("outputs", cond, "cond");
        denoiser_.check("inputs", taken, "cond");
        decoder_.check("inputs", {"x0"}, "cond");
    }

    const MadeBy& made_by() const override { return made_by_; }
    const std::string& provider() const override { return provider_; }
    size_t calls_at_a_time() const override { return options_.calls_at_a_time; }
    std::optional<int64_t> max_batch() const override { return std::nullopt; }

    Cond text_encoder(const std::map<std::string, Array>& input_ids) override {
        const size_t rows = input_ids.empty() ? 0 : input_ids.begin()->second.rows();
        return text_graph().run(pointers(input_ids), rows);
    }

    Cond conditioner(const std::map<std::string, Array>& given) override {
        const Array& codes = given.at("code");
        for (size_t i = 0; i < codes.size(); i++) {
            const int64_t code = codes.integers()[i];
            if (NULL_CODE <= code && code < num_codes_) continue;
            throw about("code", concat(" is ", code, "; this bundle has ", num_codes_,
                                       " codes (0 or more) and the null code -1"));
        }
        // A bundle without codes has a graph of the context alone.
        return conditioner_.run(pointers(given), codes.rows());
    }

    Array denoiser(const Array& x_t, const Array& t, const Cond& cond) override {
        std::map<std::string, const Array*> feeds{{"x_t", &x_t}, {"t", &t}};
        for (const auto& [name, array] : cond) feeds[name] = &array;
        return denoiser_.first(feeds, x_t.rows());
    }

    Array decoder(const Array& x0) override {
        Array image = decoder_.first({{"x0", &x0}}, x0.rows());
        const float* values = image.floats();
        if (!std::all_of(values, values + image.size(), [](float value) { return std::isfinite(value); })) {
            throw about(bundle_.path,
                        concat(": produced non-finite values; its weights or the requested scales are at fault"));
        }
        return image;
    }

private:
    Opening opening() { return {*library_, options_, provider_, config_.precision == "fp16", turns_}; }

    // Its path; what it reads is hashed as it is.
    static std::string graph_of(const Bundle& bundle, const std::string& name) {
        check_external_files(bundle, name + ".onnx");
        return bundle.file(name + ".onnx");
    }

    static std::map<std::string, const Array*> pointers(const std::map<std::string, Array>& arrays) {
        std::map<std::string, const Array*> found;
        for (const auto& [name, array] : arrays) found[name] = &array;
        return found;
    }

    // Opened when the first prompt comes: it is needed for no more than that.
    const Graph& text_graph() {
        const std::lock_guard lock(text_mutex_);
        if (!text_) {
            Graph graph("text_encoder", bundle_.file("text_encoder.onnx"), opening());
            bundle_.check_unchanged();
            std::vector<std::string> inputs, outputs{"context"};
            for (const TextSpec& spec : config_.text) inputs.push_back(spec.input);
            for (const TensorSpec& spec : config_.added) {
                if (kPooled.contains(spec.name)) outputs.push_back(spec.name);
            }
            graph.check("inputs", inputs, "text");
            graph.check("outputs", outputs, "added");
            text_.emplace(std::move(graph));
        }
        return *text_;
    }

    std::shared_ptr<OrtLibrary> library_;  // first: it outlives the sessions
    const OrtOptions options_;             // with the log that sessions tell
    const std::string provider_;
    const Bundle& bundle_;
    const RuntimeConfig& config_;
    const int64_t num_codes_;
    std::counting_semaphore<> turns_;
    MadeBy made_by_;
    Graph conditioner_, denoiser_, decoder_;
    std::mutex text_mutex_;
    std::optional<Graph> text_;
};

}  // namespace

bool is_cpu(const std::string& provider) { return lower(provider) == "cpu" || lower(provider) == lower(kCpu); }

std::unique_ptr<Backend> make_ort_backend(const Bundle& bundle, std::shared_ptr<OrtLibrary> library,
                                          OrtOptions options) {
    return std::make_unique<OrtBackend>(bundle, std::move(library), std::move(options));
}

}  // namespace ddm
