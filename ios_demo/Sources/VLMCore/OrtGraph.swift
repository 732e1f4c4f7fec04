// A graph that ONNX Runtime has opened, held to what the manifest says of it, and its runs.
import COrt
import Foundation

final class OrtGraph {
    private let ort: Ort
    private let session: OrtSession
    let inputs: [(name: String, slot: OrtSlot)]
    let outputs: [(name: String, slot: OrtSlot)]

    /// Throws EdgeError on a file that the library refuses, or that is not the part of the manifest.
    init(_ file: URL, part: Part, threads: Int) throws {
        ort = try Ort.shared()
        session = try OrtSession(ort, file, threads)
        inputs = try session.slots(
            count: ort.api.SessionGetInputCount, name: ort.api.SessionGetInputName,
            info: ort.api.SessionGetInputTypeInfo)
        outputs = try session.slots(
            count: ort.api.SessionGetOutputCount, name: ort.api.SessionGetOutputName,
            info: ort.api.SessionGetOutputTypeInfo)
        for (told, found) in [(part.inputs, inputs), (part.outputs, outputs)]
        where Set(told.map(\.name)) != Set(found.map(\.name)) {
            throw EdgeError.engine(
                "\(file.lastPathComponent) is not the part that the manifest describes: it has \(found.map(\.name))")
        }
    }

    /// One run, which ends within a node when the end is asked for. `into`: outputs that are written where these
    /// tensors lie. Gives the float32 numbers of the output `wanted`.
    func run(
        _ feeds: [(name: String, tensor: OrtTensor)],
        into: [(name: String, tensor: OrtTensor)] = [],
        wanted: String,
        stop: Stop
    ) throws -> [Float] {
        let options = try RunOptions(ort)
        var results: [OpaquePointer?] = [nil] + into.map(\.tensor.value)
        do {
            try withNames(feeds.map(\.name)) { given in
                try withNames([wanted] + into.map(\.name)) { made in
                    try stop.during(end: options.end) {
                        try ort.check(
                            ort.api.Run(
                                session.pointer, options.pointer, given, feeds.map(\.tensor.value), given.count, made,
                                made.count,
                                &results))
                    }
                }
            }
        } catch {
            if stop.asked { throw EdgeError.stopped }
            throw error
        }
        guard let result = results[0] else { throw EdgeError.engine("onnxruntime gave no \(wanted)") }
        defer { ort.api.ReleaseValue(result) }
        return try floats(result)
    }

    private func floats(_ value: OpaquePointer) throws -> [Float] {
        var info: OpaquePointer?
        try ort.check(ort.api.GetTensorTypeAndShape(value, &info))
        defer { ort.api.ReleaseTensorTypeAndShapeInfo(info) }
        var count = 0
        var type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED
        var data: UnsafeMutableRawPointer?
        try ort.check(ort.api.GetTensorShapeElementCount(info, &count))
        try ort.check(ort.api.GetTensorElementType(info, &type))
        try ort.check(ort.api.GetTensorMutableData(value, &data))
        guard type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, let data else {
            throw EdgeError.engine("onnxruntime gave numbers of the type \(type.rawValue), not float32")
        }
        return Array(UnsafeBufferPointer(start: data.assumingMemoryBound(to: Float.self), count: count))
    }
}

/// How one run is ended from another thread.
private final class RunOptions: @unchecked Sendable {  // the library lets the end be asked for from anywhere
    private let ort: Ort
    let pointer: OpaquePointer

    init(_ ort: Ort) throws {
        var made: OpaquePointer?
        try ort.check(ort.api.CreateRunOptions(&made))
        guard let made else { throw EdgeError.engine("onnxruntime made no options of a run") }
        (self.ort, pointer) = (ort, made)
    }

    deinit { ort.api.ReleaseRunOptions(pointer) }

    func end() { ort.api.RunOptionsSetTerminate(pointer).map { ort.api.ReleaseStatus($0) } }
}

/// Names as C has them.
private func withNames<T>(_ names: [String], _ work: ([UnsafePointer<CChar>?]) throws -> T) rethrows -> T {
    let copies = names.map { strdup($0) }
    defer { for copy in copies { free(copy) } }
    return try work(copies.map { UnsafePointer($0) })
}
