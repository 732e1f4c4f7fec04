// ONNX Runtime's C API: a table of functions, the same on Linux and on Apple's systems.
import COrt
import Foundation

/// The library, started once.
final class Ort: @unchecked Sendable {  // the library's environment may be used by many threads
    private static let started = Result { try Ort() }
    let api: OrtApi
    let environment: OpaquePointer
    let memory: OpaquePointer
    let version: String

    /// Throws EdgeError.
    static func shared() throws -> Ort { try started.get() }

    private init() throws {
        setenv("ORT_DISABLE_TELEMETRY", "1", 0)  // before the first call: newer versions report by themselves
        guard let base = OrtGetApiBase(), let api = base.pointee.GetApi(UInt32(ORT_API_VERSION)) else {
            throw EdgeError.engine("ONNX Runtime is older than version \(ORT_API_VERSION) of its interface")
        }
        self.api = api.pointee
        version = base.pointee.GetVersionString().map { String(cString: $0) } ?? "?"
        var environment: OpaquePointer?
        var memory: OpaquePointer?
        try Ort.check(api.pointee, api.pointee.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edge-vlm", &environment))
        try Ort.check(
            api.pointee, api.pointee.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory))
        guard let environment, let memory else { throw EdgeError.engine("ONNX Runtime does not start") }
        (self.environment, self.memory) = (environment, memory)
    }

    /// Throws EdgeError with the library's own words.
    func check(_ status: OpaquePointer?) throws { try Ort.check(api, status) }

    private static func check(_ api: OrtApi, _ status: OpaquePointer?) throws {
        guard let status else { return }
        defer { api.ReleaseStatus(status) }
        let words = api.GetErrorMessage(status).map { String(cString: $0) } ?? "it failed"
        throw EdgeError.engine("onnxruntime: \(words)")
    }
}

/// Memory that the library reads and writes where it lies.
final class OrtTensor {
    private let ort: Ort
    private let memory: UnsafeMutableRawPointer
    let value: OpaquePointer

    /// Zeros. Throws EdgeError.
    init(_ ort: Ort, type: ONNXTensorElementDataType, width: Int, shape: [Int]) throws {
        guard let bytes = Numbers.bytes(shape, width: width), let memory = OrtTensor.zeros(bytes) else {
            throw EdgeError.engine("no memory for a tensor of \(shape)", hint: "a smaller context")
        }
        (self.ort, self.memory) = (ort, memory)
        value = try OrtTensor.value(ort, memory, bytes, type, shape)
    }

    /// Throws EdgeError.
    convenience init(_ ort: Ort, floats: [Float], shape: [Int]) throws {
        try self.init(ort, type: ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, width: 4, shape: shape)
        floats.withUnsafeBytes { UnsafeMutableRawBufferPointer(start: memory, count: $0.count).copyMemory(from: $0) }
    }

    /// Throws EdgeError.
    convenience init(_ ort: Ort, whole: [Int64], shape: [Int]) throws {
        try self.init(ort, type: ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, width: 8, shape: shape)
        whole.withUnsafeBytes { UnsafeMutableRawBufferPointer(start: memory, count: $0.count).copyMemory(from: $0) }
    }

    deinit {
        ort.api.ReleaseValue(value)
        free(memory)
    }

    private static func zeros(_ bytes: Int) -> UnsafeMutableRawPointer? {
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 64, max(bytes, 64)) == 0, let memory else { return nil }
        memset(memory, 0, max(bytes, 64))
        return memory
    }

    private static func value(
        _ ort: Ort,
        _ memory: UnsafeMutableRawPointer,
        _ bytes: Int,
        _ type: ONNXTensorElementDataType,
        _ shape: [Int]
    ) throws -> OpaquePointer {
        var made: OpaquePointer?
        do {
            try ort.check(
                ort.api.CreateTensorWithDataAsOrtValue(
                    ort.memory, memory, bytes, shape.map(Int64.init), shape.count, type, &made))
        } catch {
            free(memory)
            throw error
        }
        guard let made else { throw EdgeError.engine("onnxruntime made no tensor of \(shape)") }
        return made
    }
}
