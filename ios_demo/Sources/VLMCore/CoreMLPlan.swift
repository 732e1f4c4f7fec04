// What of a Core ML part is decided before Core ML is asked: its package, functions, states, and whether the system is new enough.
import Foundation

/// What computes.
public enum ComputeUnits: String, Sendable, CaseIterable {
    case all, cpu, gpu, ane
}

struct CoreMLPlan {
    /// The package, relative to the bundle.
    let package: String
    /// Positions that the states hold; nil: it has none.
    let held: Int?
    let masked: Float
    /// Equal for equal files: what a compiled package is kept under.
    let key: String

    /// Throws EdgeError on a package that this system is too old for, or whose states or functions are not what a
    /// decoder's are. `system`: the versions of this one, by `ios` or `macos`.
    init(_ part: Part, spec: DecoderSpec, system: (name: String, version: String)) throws {
        let name = part.covers.joined(separator: "+")
        let path = part.files[0].path.split(separator: "/").map(String.init)
        guard path.count >= 2, path[path.count - 2].hasSuffix(".mlpackage") else {
            throw EdgeError.bundle("the \(name) part begins with \(part.files[0].path), which is in no package")
        }
        package = path.dropLast().joined(separator: "/")
        key = Bytes(part.files.map(\.sha256).joined()).withUnsafeBytes { String(Sha256.of($0).prefix(16)) }
        let told = try Fields(part.details, "details of the \(name) part")
        let least = try told.fields("minimum").text(system.name)
        if CoreMLPlan.older(system.version, than: least) {
            throw EdgeError.engine(
                "the \(name) part needs \(system.name) \(least), and this is \(system.version)",
                hint: "update the system")
        }
        let functions = try told.value("functions").members?.map(\.name) ?? []
        let decodes = part.covers.contains("decoder")
        let needed = decodes ? [StatefulDecoder.prefill, StatefulDecoder.decode] : ["encode"]
        if let missing = needed.first(where: { !functions.contains($0) }) {
            throw EdgeError.bundle("the \(name) part has no function \(missing), but \(functions)")
        }
        held = decodes ? try CoreMLPlan.held(told, spec) : nil
        masked = decodes ? Float(try told.number("masked")) : 0
    }

    /// Both caches `[layers, 1, kv_heads, positions, head_dim]`, of half precision.
    private static func held(_ told: Fields, _ spec: DecoderSpec) throws -> Int {
        var lengths: [String: Int] = [:]
        for state in try told.objects("states") {
            let (name, shape) = (try state.text("name"), try state.ids("shape"))
            let around = shape.count == 5 ? [shape[0], shape[1], shape[2], shape[4]] : []
            guard try state.text("dtype") == "float16", around == [spec.layers, 1, spec.kvHeads, spec.headDim] else {
                throw EdgeError.bundle("the state \(name) is \(shape), which is not this decoder's")
            }
            lengths[name] = shape[3]
        }
        guard lengths.count == 2, let length = lengths["key_cache"], length == lengths["value_cache"] else {
            throw EdgeError.bundle("the decoder's states are \(lengths.keys.sorted()), not key_cache and value_cache")
        }
        return length
    }

    /// By the numbers between dots.
    static func older(_ version: String, than least: String) -> Bool {
        func numbers(_ text: String) -> [Int] { text.split(separator: ".").map { Int($0) ?? 0 } }
        var (own, needed) = (numbers(version), numbers(least))
        while own.count < needed.count { own.append(0) }
        while needed.count < own.count { needed.append(0) }
        return own.lexicographicallyPrecedes(needed)
    }
}
