// Rows are copied as bytes: only their size counts here.
#include "array.h"

#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace ddm {
namespace {

// Bytes of an array. Throws std::length_error where no memory has so many.
size_t bytes_of(const std::vector<int64_t>& shape, DType dtype) {
    size_t bytes = size_of(dtype);
    for (const int64_t side : shape) {
        if (side < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(side), &bytes)) {
            throw std::length_error("array: its shape is beyond any memory");
        }
    }
    return bytes;
}

template <typename T>
Array filled(DType dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
    Array array(dtype, std::move(shape));
    if (array.size() != values.size()) throw std::logic_error("array: values don't fill the shape");
    if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
    return array;
}

void check(const Array& array, DType dtype) {
    if (array.dtype != dtype) throw std::logic_error("array: of another dtype");
}

// To the nearest, of two equally near to the even one; what is too large is infinite.
uint16_t half_of(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);   // no number
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7C00);  // 2**16 or more
    uint32_t half = 0, lost = 0, unit = 1 << 13;                               // of the value's last places
    if (magnitude >= 0x38800000) {                                             // 2**-14: the smallest normal number
        half = (magnitude - 0x38000000) >> 13;
        lost = magnitude & 0x1FFF;
    } else if (magnitude >= 0x33000000) {  // 2**-25: half of the smallest number
        const uint32_t places = 126 - (magnitude >> 23), digits = (magnitude & 0x7FFFFF) | 0x800000;
        half = digits >> places;
        unit = uint32_t{1} << places;
        lost = digits & (unit - 1);
    }
    if (2 * lost > unit || (2 * lost == unit && half & 1)) half++;
    return static_cast<uint16_t>(sign | half);
}

// Towards zero; what has no such number becomes the least, as numpy has it on x86.
int64_t whole_of(float value) {
    constexpr float kLimit = 9223372036854775808.0F;
    return value >= -kLimit && value < kLimit ? static_cast<int64_t>(value) : std::numeric_limits<int64_t>::min();
}

}  // namespace

size_t size_of(DType dtype) { return dtype == DType::int64 ? 8 : dtype == DType::float32 ? 4 : 2; }

DType dtype_named(const std::string& name) {
    return name == "int64" ? DType::int64 : name == "float16" ? DType::float16 : DType::float32;
}

Array::Array(DType dtype, std::vector<int64_t> shape)
    : dtype(dtype), shape(std::move(shape)), bytes(bytes_of(this->shape, dtype)) {}

Array Array::of(std::vector<int64_t> shape, const std::vector<float>& values) {
    return filled(DType::float32, std::move(shape), values);
}

Array Array::of(std::vector<int64_t> shape, const std::vector<int64_t>& values) {
    return filled(DType::int64, std::move(shape), values);
}

float* Array::floats() {
    check(*this, DType::float32);
    return reinterpret_cast<float*>(bytes.data());
}

const float* Array::floats() const {
    check(*this, DType::float32);
    return reinterpret_cast<const float*>(bytes.data());
}

const int64_t* Array::integers() const {
    check(*this, DType::int64);
    return reinterpret_cast<const int64_t*>(bytes.data());
}

Array cast(const Array& array, DType dtype) {
    if (array.dtype == dtype) return array;
    Array out(dtype, array.shape);
    const float* values = array.floats();
    for (size_t i = 0; i < array.size(); i++) {
        const uint16_t half = half_of(values[i]);
        const int64_t whole = whole_of(values[i]);
        const void* from = dtype == DType::float16 ? static_cast<const void*>(&half) : &whole;
        std::memcpy(out.bytes.data() + i * size_of(dtype), from, size_of(dtype));
    }
    return out;
}

Array take(const Array& array, const std::vector<size_t>& index) {
    Array out;
    out.dtype = array.dtype;
    out.shape = array.shape;
    out.shape.at(0) = static_cast<int64_t>(index.size());
    const size_t width = array.row_bytes();
    out.bytes.reserve(index.size() * width);
    for (const size_t row : index) {
        if (row >= array.rows()) throw std::logic_error("array: no such row");
        const auto start = array.bytes.begin() + static_cast<std::ptrdiff_t>(row * width);
        out.bytes.insert(out.bytes.end(), start, start + static_cast<std::ptrdiff_t>(width));
    }
    return out;
}

Array concat(const std::vector<const Array*>& arrays) {
    Array out;
    out.dtype = arrays.at(0)->dtype;
    out.shape = arrays[0]->shape;
    out.shape.at(0) = 0;
    for (const Array* array : arrays) {
        auto expected = out.shape;
        expected[0] = array->shape.at(0);
        if (array->dtype != out.dtype || array->shape != expected) throw std::logic_error("array: shapes don't fit");
        out.shape[0] += array->shape[0];
        out.bytes.insert(out.bytes.end(), array->bytes.begin(), array->bytes.end());
    }
    return out;
}

}  // namespace ddm
