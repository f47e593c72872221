// Named, batch-first arrays on the host: what the backends take and give, and what happens between their calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ddm {

enum class DType { float32, float16, int64 };

size_t size_of(DType dtype);
DType dtype_named(const std::string& name);  // as runtime.json has it

struct Array {
    DType dtype = DType::float32;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;

    Array() = default;
    Array(DType dtype, std::vector<int64_t> shape);  // zeros; throws std::length_error beyond any memory
    static Array of(std::vector<int64_t> shape, const std::vector<float>& values);
    static Array of(std::vector<int64_t> shape, const std::vector<int64_t>& values);

    size_t rows() const { return static_cast<size_t>(shape.at(0)); }
    size_t size() const { return bytes.size() / size_of(dtype); }
    size_t row_bytes() const { return rows() ? bytes.size() / rows() : 0; }

    float* floats();  // of a float32 array
    const float* floats() const;
    const int64_t* integers() const;
};

using Cond = std::vector<std::pair<std::string, Array>>;

// Numbers in float32 as others; of the same dtype they stay as they are.
Array cast(const Array& array, DType dtype);

// Rows of an array by index.
Array take(const Array& array, const std::vector<size_t>& index);

// Arrays joined along the batch axis; of equal shapes but for that.
Array concat(const std::vector<const Array*>& arrays);

}  // namespace ddm
