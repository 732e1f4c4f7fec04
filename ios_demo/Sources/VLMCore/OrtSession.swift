// A session of ONNX Runtime: a file that it has opened, and what that takes and gives.
import COrt
import Foundation

/// Type and shape of an input or output; `axes` are the names of sizes that vary.
struct OrtSlot {
    let type: ONNXTensorElementDataType
    let shape: [Int]
    let axes: [String]
}

final class OrtSession {
    private let ort: Ort
    let pointer: OpaquePointer

    /// Throws EdgeError on a file that the library refuses.
    init(_ ort: Ort, _ file: URL, _ threads: Int) throws {
        var options: OpaquePointer?
        var session: OpaquePointer?
        try ort.check(ort.api.CreateSessionOptions(&options))
        defer { ort.api.ReleaseSessionOptions(options) }
        try ort.check(ort.api.SetIntraOpNumThreads(options, Int32(threads)))
        try ort.check(ort.api.SetInterOpNumThreads(options, 1))
        try ort.check(ort.api.SetSessionExecutionMode(options, ORT_SEQUENTIAL))
        try ort.check(ort.api.SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL))
        // A pattern is planned and kept for every combination of shapes, and each token brings a new one.
        try ort.check(ort.api.DisableMemPattern(options))
        do {
            try ort.check(ort.api.CreateSession(ort.environment, file.path, options, &session))
        } catch let error as EdgeError {
            throw EdgeError.engine("\(file.lastPathComponent) does not open: \(error.message)", hint: EdgeError.again)
        }
        guard let session else { throw EdgeError.engine("\(file.lastPathComponent) does not open") }
        (self.ort, pointer) = (ort, session)
    }

    deinit { ort.api.ReleaseSession(pointer) }

    /// Inputs or outputs, by the three functions that tell of them. Throws EdgeError.
    func slots(
        count: (OpaquePointer?, UnsafeMutablePointer<Int>?) -> OpaquePointer?,
        name: (
            OpaquePointer?, Int, UnsafeMutablePointer<OrtAllocator>?,
            UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
        )
            -> OpaquePointer?,
        info: (OpaquePointer?, Int, UnsafeMutablePointer<OpaquePointer?>?) -> OpaquePointer?
    ) throws -> [(name: String, slot: OrtSlot)] {
        var total = 0
        var allocator: UnsafeMutablePointer<OrtAllocator>?
        try ort.check(count(pointer, &total))
        try ort.check(ort.api.GetAllocatorWithDefaultOptions(&allocator))
        return try (0..<total).map { index in
            var text: UnsafeMutablePointer<CChar>?
            try ort.check(name(pointer, index, allocator, &text))
            defer { _ = ort.api.AllocatorFree(allocator, text) }
            var type: OpaquePointer?
            try ort.check(info(pointer, index, &type))
            defer { ort.api.ReleaseTypeInfo(type) }
            return (text.map { String(cString: $0) } ?? "", try slot(type))
        }
    }

    private func slot(_ info: OpaquePointer?) throws -> OrtSlot {
        var tensor: OpaquePointer?
        try ort.check(ort.api.CastTypeInfoToTensorInfo(info, &tensor))
        guard let tensor else { return OrtSlot(type: ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, shape: [], axes: []) }
        var type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED
        var count = 0
        try ort.check(ort.api.GetTensorElementType(tensor, &type))
        try ort.check(ort.api.GetDimensionsCount(tensor, &count))
        var sizes = [Int64](repeating: 0, count: count)
        var axes = [UnsafePointer<CChar>?](repeating: nil, count: count)
        try ort.check(ort.api.GetDimensions(tensor, &sizes, count))
        try ort.check(ort.api.GetSymbolicDimensions(tensor, &axes, count))
        return OrtSlot(type: type, shape: sizes.map(Int.init), axes: axes.map { $0.map { String(cString: $0) } ?? "" })
    }
}
