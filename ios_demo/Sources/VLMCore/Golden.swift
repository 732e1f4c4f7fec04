// Golden sample: what the reference computed of one image and one question, so that any device can prove its own.
import Foundation

/// What one set of weights computes: rows `[N, hidden]`, the prompt's last logits, and greedy tokens.
struct Outputs {
    let imageEmbeds: [Float]
    let logits: [Float]
    let tokens: [Int]
}

public struct Golden {
    public let picture: Picture
    let pixelValues: [Float]
    let fp32: Outputs
    /// On the weights as the parts hold them.
    let stored: Outputs
    /// Where kernels round activations to integers as they run.
    let rounded: Outputs?

    /// `golden.safetensors`, or schema 1's `golden.npz`. Throws EdgeError.
    public init(_ file: URL) throws {
        let (name, data) = (file.lastPathComponent, try readable(file, mapped: true))
        let found = file.pathExtension == "npz" ? try Npz.read(name, data) : try Safetensors.read(name, data)
        func take(_ tensor: String, _ dtype: String, _ dimensions: Int) throws -> Numbers {
            guard let array = found[tensor] else { throw EdgeError.bundle("\(name) has no \(tensor)") }
            if array.dtype != dtype || array.shape.count != dimensions {
                throw EdgeError.bundle("\(name) has \(tensor) as \(array.dtype) \(array.shape)")
            }
            return array
        }
        func outputs(_ suffix: String) throws -> Outputs {
            Outputs(
                imageEmbeds: try take("image_embeds\(suffix)", "F32", 3).values(Float.self),
                logits: try take("logits\(suffix)", "F32", 1).values(Float.self),
                tokens: try take("tokens\(suffix)", "I32", 1).values(Int32.self).map(Int.init))
        }
        let seen = try take("picture", "U8", 3)
        if seen.shape[2] != 3 { throw EdgeError.bundle("\(name) has a picture of \(seen.shape)") }
        picture = try Picture(width: seen.shape[1], height: seen.shape[0], rgb: seen.values(UInt8.self))
        pixelValues = try take("pixel_values", "F32", 4).values(Float.self)
        fp32 = try outputs("")
        stored = try outputs(".stored")
        rounded = found["logits.rounded"] == nil ? nil : try outputs(".rounded")
    }
}
