// ONNX Runtime's C API, as Swift imports it: of the framework on Apple's systems, of a folder of headers on Linux.
#pragma once
#if __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#else
#include <onnxruntime_c_api.h>
#endif
