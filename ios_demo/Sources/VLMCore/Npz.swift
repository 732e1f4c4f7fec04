// NumPy's .npz: a zip of .npy files, as schema 1 keeps its golden sample.
import Foundation

enum Npz {
    private static let dtypes = ["|u1": "U8", "<f4": "F32", "<i4": "I32"]
    private static let largest = 1 << 28  // bytes: the pixels of the largest square

    /// Arrays under safetensors' names of types. Throws EdgeError.
    static func read(_ name: String, _ data: Data) throws -> [String: Numbers] {
        let archive = try ZipArchive(name, data)
        var found: [String: Numbers] = [:]
        for entry in archive.entries {
            let array = try Npy.read(entry.path, archive.content(entry, most: largest))
            let own = entry.path.hasSuffix(".npy") ? String(entry.path.dropLast(4)) : entry.path
            found[own] = Numbers(
                dtype: dtypes[array.dtype] ?? array.dtype, shape: array.shape, data: array.data, offset: array.offset)
        }
        return found
    }
}
