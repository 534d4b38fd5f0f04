// Reads a torch tensor's attributes with as few Python calls as it takes: a view costs well under a microsecond.
#include "tensor.h"

namespace py = pybind11;

namespace moelens {

namespace {

// Owned for the life of the process: an extension module is never unloaded.
struct Torch {
    PyObject* tensor = nullptr;
    PyObject* float32 = nullptr;
    PyObject* bfloat16 = nullptr;
    PyObject* int32 = nullptr;
    PyObject* int8 = nullptr;
    PyObject* is_there = nullptr;  // is_cpu or is_cuda
    PyObject* dtype = nullptr;
    PyObject* shape = nullptr;
    PyObject* stride = nullptr;
    PyObject* data_ptr = nullptr;
    const char* place = nullptr;
    const char* remedy = nullptr;
};

Torch torch;

PyObject* name(const char* text) {
    return PyUnicode_InternFromString(text);
}

py::object check(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

int64_t to_int(PyObject* object) {
    const int64_t value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

void read_sizes(const py::object& tuple, int rank, int64_t* sizes) {
    for (int i = 0; i < rank; ++i) sizes[i] = to_int(PyTuple_GET_ITEM(tuple.ptr(), i));
}

DType read_dtype(PyObject* tensor) {
    const py::object dtype = check(PyObject_GetAttr(tensor, torch.dtype));
    if (dtype.ptr() == torch.float32) return DType::kFloat32;
    if (dtype.ptr() == torch.bfloat16) return DType::kBFloat16;
    if (dtype.ptr() == torch.int32) return DType::kInt32;
    if (dtype.ptr() == torch.int8) return DType::kInt8;
    return DType::kOther;
}

}  // namespace

void import_torch(Device device) {
    const py::module_ module = py::module_::import("torch");
    torch.tensor = module.attr("Tensor").cast<py::object>().release().ptr();
    torch.float32 = module.attr("float32").cast<py::object>().release().ptr();
    torch.bfloat16 = module.attr("bfloat16").cast<py::object>().release().ptr();
    torch.int32 = module.attr("int32").cast<py::object>().release().ptr();
    torch.int8 = module.attr("int8").cast<py::object>().release().ptr();
    const bool is_cpu = device == Device::kCpu;
    torch.is_there = name(is_cpu ? "is_cpu" : "is_cuda");
    torch.place = is_cpu ? "the CPU" : "a CUDA device";
    torch.remedy = is_cpu ? ".cpu()" : ".cuda()";
    torch.dtype = name("dtype");
    torch.shape = name("shape");
    torch.stride = name("stride");
    torch.data_ptr = name("data_ptr");
}

bool TensorView::is_contiguous() const {
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
        if (shape[i] == 0) return true;
        if (shape[i] != 1 && strides[i] != expected) return false;
        expected *= shape[i];
    }
    return true;
}

int64_t TensorView::count() const {
    int64_t elements = 1;
    for (int i = 0; i < rank; ++i) elements *= shape[i];
    return elements;
}

TensorView view_tensor(const char* op, const char* argument, py::handle object) {
    const auto where = [&] { return std::string(op) + ": " + argument; };
    const int known = PyObject_IsInstance(object.ptr(), torch.tensor);
    if (known < 0) throw py::error_already_set();
    if (known == 0) {
        throw py::type_error(where() + " must be a torch.Tensor, found " + Py_TYPE(object.ptr())->tp_name);
    }
    if (check(PyObject_GetAttr(object.ptr(), torch.is_there)).ptr() != Py_True) {
        throw py::value_error(where() + " must be on " + torch.place + ", found it on " +
                              std::string(py::str(object.attr("device"))) + "; move it with " + torch.remedy);
    }
    TensorView view;
    const py::object shape = check(PyObject_GetAttr(object.ptr(), torch.shape));
    const int64_t rank = PyTuple_Size(shape.ptr());
    if (rank < 0) throw py::error_already_set();
    if (rank > kMaxRank) throw py::value_error(where() + " has " + std::to_string(rank) + " dimensions");
    view.rank = static_cast<int>(rank);
    read_sizes(shape, view.rank, view.shape);
    read_sizes(check(PyObject_CallMethodObjArgs(object.ptr(), torch.stride, nullptr)), view.rank, view.strides);
    view.dtype = read_dtype(object.ptr());
    const py::object address = check(PyObject_CallMethodObjArgs(object.ptr(), torch.data_ptr, nullptr));
    view.data = PyLong_AsVoidPtr(address.ptr());
    return view;
}

int64_t bytes_of(DType dtype) {
    switch (dtype) {
        case DType::kBFloat16:
            return 2;
        case DType::kInt8:
            return 1;
        default:
            return 4;
    }
}

std::string describe_dtype(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return "float32";
        case DType::kBFloat16:
            return "bfloat16";
        case DType::kInt32:
            return "int32";
        case DType::kInt8:
            return "int8";
        case DType::kOther:
            break;
    }
    return "another dtype";
}

std::string describe_shape(const int64_t* shape, int rank) {
    std::string text = "[";
    for (int i = 0; i < rank; ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

}  // namespace moelens
