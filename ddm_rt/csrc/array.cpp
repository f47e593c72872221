// Rows are copied as bytes: only their size counts here.
#include "array.h"

#include <cstring>
#include <functional>
#include <numeric>
#include <stdexcept>

namespace ddm {
namespace {

size_t product(const std::vector<int64_t>& shape) {
    return std::accumulate(shape.begin(), shape.end(), size_t{1},
                           [](size_t a, int64_t b) { return a * static_cast<size_t>(b); });
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

}  // namespace

size_t size_of(DType dtype) {
    return dtype == DType::int64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

DType dtype_named(const std::string& name) {
    return name == "int64" ? DType::int64 : name == "float16" ? DType::float16 : DType::float32;
}

Array::Array(DType dtype, std::vector<int64_t> shape)
    : dtype(dtype), shape(std::move(shape)), bytes(product(this->shape) * size_of(dtype)) {}

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
