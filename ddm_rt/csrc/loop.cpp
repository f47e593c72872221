#include "loop.h"

#include "error.h"
#include "guided_step.h"
#include "text.h"

namespace ddm {
namespace {

// One call of the denoiser in every step: which rows it has, of which images, and their conditions.
struct Call {
    std::vector<size_t> rows, images;
    Cond cond;
};

}  // namespace

Array sample(Backend& backend, const StepTable& table, Array x, const std::vector<Branches>& needed,
             const std::vector<uint64_t>& seeds, const Gather& gather, const std::vector<size_t>& buckets,
             const Done& done, const Cancelled& cancelled) {
    const size_t batch = needed.size(), branches = needed.at(0).conditions.size(), steps = table.num_steps();
    std::vector<Condition> wanted;  // row r is image r % batch in branch r / batch
    for (size_t k = 0; k < branches; k++) {
        for (const Branches& each : needed) wanted.push_back(each.conditions.at(k));
    }
    std::vector<std::vector<float>> scales;
    for (const Branches& each : needed) scales.emplace_back(each.scales.begin(), each.scales.end());
    std::vector<Call> calls;
    for (std::vector<size_t>& rows : split(wanted.size(), buckets)) {
        Call call;
        std::vector<Condition> conditions;
        for (const size_t row : rows) {
            call.images.push_back(row % batch);
            conditions.push_back(wanted[row]);
        }
        call.rows = std::move(rows);
        call.cond = gather(conditions);
        calls.push_back(std::move(call));
    }

    const auto rows = table.rows();
    const auto timesteps = table.timesteps();
    const size_t size = x.size() / batch;
    Array x0 = x;  // e is 0 in a table's first row, so any finite x0_prev does
    std::vector<float> noise;
    std::vector<const float*> output_of(wanted.size()), outputs(branches);
    for (size_t step = 0; step < steps; step++) {
        if (cancelled && cancelled()) {
            throw Error(Status::cancelled, concat("cancelled before step ", step + 1, " of ", steps));
        }
        std::vector<Array> made;
        made.reserve(calls.size());
        for (const Call& call : calls) {
            const Array t = Array::of({static_cast<int64_t>(call.rows.size())},
                                      std::vector<float>(call.rows.size(), timesteps[step]));
            made.push_back(backend.denoiser(take(x, call.images), t, call.cond));
            if (made.back().size() != call.rows.size() * size) {
                throw Error(Status::bundle, "denoiser.onnx: gives another shape than that of x_t");
            }
            for (size_t i = 0; i < call.rows.size(); i++) output_of[call.rows[i]] = made.back().floats() + i * size;
        }
        for (size_t image = 0; image < batch; image++) {
            for (size_t k = 0; k < branches; k++) outputs[k] = output_of[k * batch + image];
            guided_step(outputs, scales[image], rows[step], x.floats() + image * size, x0.floats() + image * size, size,
                        seeds[image], static_cast<uint32_t>(step), noise);
        }
        if (done) done(static_cast<int64_t>(step) + 1);
    }
    return x;
}

}  // namespace ddm
