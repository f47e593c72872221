#include "loop.h"

#include <functional>

#include "error.h"
#include "guided_step.h"
#include "text.h"

namespace ddm {
namespace {

// One call of the denoiser in a step: which rows it has, of which images, and their conditions.
struct Call {
    std::vector<size_t> rows, images;
    Cond cond;
};

// The calls of steps in which each image has its last `branches` branches: row r is image r % batch in branch r / batch.
struct Layout {
    // The condition of an image in one of its branches.
    using Given = std::function<Condition(size_t image, const Condition&)>;

    size_t branches;
    std::vector<Call> calls;

    Layout(const std::vector<Branches>& needed, size_t count, const Given& given, const Gather& gather,
           const std::vector<size_t>& buckets)
        : branches(count) {
        const size_t batch = needed.size();
        for (std::vector<size_t>& rows : split(batch * branches, buckets)) {
            Call call;
            std::vector<Condition> wanted;
            for (const size_t row : rows) {
                const std::vector<Condition>& own = needed[row % batch].conditions;
                call.images.push_back(row % batch);
                wanted.push_back(given(row % batch, own.at(own.size() - branches + row / batch)));
            }
            call.rows = std::move(rows);
            call.cond = gather(wanted);
            calls.push_back(std::move(call));
        }
    }
};

}  // namespace

Array sample(Backend& backend, const StepTable& table, Array x, const std::vector<Branches>& needed,
             const std::vector<uint64_t>& seeds, const std::optional<Projection>& projection,
             const std::optional<TokenNoise>& token_noise, const Gather& gather, const std::vector<size_t>& buckets,
             const Done& done, const Cancelled& cancelled) {
    const size_t batch = needed.size(), guided = needed.at(0).conditions.size(), steps = table.num_steps();
    std::vector<std::vector<float>> scales;
    for (const Branches& each : needed) scales.emplace_back(each.scales.begin(), each.scales.end());
    std::optional<Layout> layout;
    bool was_noisy = false;
    const auto rows = table.rows();
    const auto timesteps = table.timesteps();
    const size_t size = x.size() / batch;
    Array x0 = x;  // e is 0 in a table's first row, so any finite x0_prev does
    std::vector<float> noise, combined(size);
    std::vector<const float*> output_of(batch * guided);
    for (size_t step = 0; step < steps; step++) {
        if (cancelled && cancelled()) {
            throw Error(Status::cancelled, concat("cancelled before step ", step + 1, " of ", steps));
        }
        const size_t branches = table.guided[step] ? guided : 1;
        const bool noisy = token_noise && table.kept[step] < 1;
        const auto given = [&](size_t image, Condition condition) {
            if (noisy && condition != token_noise->null) {
                condition.noise = NoiseAt{seeds[image], static_cast<uint32_t>(step), token_noise->scale, table.kept[step]};
            }
            return condition;
        };
        if (!layout || layout->branches != branches || noisy || was_noisy) {
            layout.emplace(needed, branches, given, gather, buckets);
        }
        was_noisy = noisy;
        std::vector<Array> made;
        made.reserve(layout->calls.size());
        for (const Call& call : layout->calls) {
            const Array t = Array::of({static_cast<int64_t>(call.rows.size())},
                                      std::vector<float>(call.rows.size(), timesteps[step]));
            made.push_back(backend.denoiser(take(x, call.images), t, call.cond));
            if (made.back().size() != call.rows.size() * size) {
                throw Error(Status::bundle, "denoiser.onnx: gives another shape than that of x_t");
            }
            for (size_t i = 0; i < call.rows.size(); i++) output_of[call.rows[i]] = made.back().floats() + i * size;
        }
        for (size_t image = 0; image < batch; image++) {
            std::vector<const float*> outputs;
            for (size_t k = 0; k < branches; k++) outputs.push_back(output_of[k * batch + image]);
            if (projection && branches > 1) {
                projected_guidance(outputs, scales[image], *projection, combined.data(), size);
                outputs.assign(1, combined.data());
            }
            guided_step(outputs, scales[image], rows[step], x.floats() + image * size, x0.floats() + image * size, size,
                        seeds[image], static_cast<uint32_t>(step), noise);
        }
        if (done) done(static_cast<int64_t>(step) + 1);
    }
    return x;
}

}  // namespace ddm
