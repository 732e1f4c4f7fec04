// Table of token embeddings (`embed_tokens.npy`), mapped from disk: a prompt touches few rows.
import Foundation

struct EmbeddingTable {
    private static let tableName = "embed_tokens.npy"
    private static let scalesName = "embed_scales.npy"
    private let table: Numbers
    private let scales: Numbers?
    private let hidden: Int

    /// Of the files of the decoder's part. Throws EdgeError.
    init(_ files: [URL], vocab: Int, hidden: Int) throws {
        func named(_ name: String) throws -> Numbers {
            guard let file = files.first(where: { $0.lastPathComponent == name }) else {
                throw EdgeError.bundle("the decoder's part has no \(name)")
            }
            return try Npy.read(name, readable(file, mapped: true))
        }
        self.hidden = hidden
        table = try named(EmbeddingTable.tableName)
        if table.shape != [vocab, hidden] || !["<f4", "<f2", "|i1"].contains(table.dtype) {
            throw EdgeError.bundle(
                "\(EmbeddingTable.tableName) is \(table.dtype) \(table.shape), not \([vocab, hidden])")
        }
        scales = table.dtype == "|i1" ? try named(EmbeddingTable.scalesName) : nil
        guard let scales else { return }
        let fits = scales.shape.count == 2 && scales.shape[0] == vocab && scales.shape[1] >= 1
        if scales.dtype != "<f4" || !fits || hidden % scales.shape[1] != 0 {
            throw EdgeError.bundle(
                "\(EmbeddingTable.scalesName) is \(scales.dtype) \(scales.shape), for a table of \([vocab, hidden])")
        }
    }

    /// Appends the embeddings of ids. Throws EdgeError on one outside the vocabulary.
    func gather(_ ids: [Int], into out: inout [Float]) throws {
        for id in ids {
            if id < 0 || id >= table.shape[0] {
                throw EdgeError.engine("the token id \(id) is outside the vocabulary of \(table.shape[0])")
            }
            table.data.withUnsafeBytes { row(id, $0, &out) }
        }
    }

    private func row(_ id: Int, _ bytes: UnsafeRawBufferPointer, _ out: inout [Float]) {
        let first = id * hidden
        switch table.dtype {
        case "<f4":
            for place in first..<first + hidden {
                out.append(bytes.loadUnaligned(fromByteOffset: table.offset + 4 * place, as: Float.self))
            }
        case "<f2":
            for place in first..<first + hidden {
                out.append(half(bytes.loadUnaligned(fromByteOffset: table.offset + 2 * place, as: UInt16.self)))
            }
        default:
            guard let scales else { return }
            let blocks = scales.shape[1]
            scales.data.withUnsafeBytes { own in
                for column in 0..<hidden {
                    let place = id * blocks + column / (hidden / blocks)
                    let scale = own.loadUnaligned(fromByteOffset: scales.offset + 4 * place, as: Float.self)
                    out.append(Float(Int8(bitPattern: bytes[table.offset + first + column])) * scale)
                }
            }
        }
    }
}

/// IEEE 754's 16 bits; exact. Swift has no Float16 on x86.
func half(_ bits: UInt16) -> Float {
    let (exponent, fraction) = (UInt32(bits >> 10 & 31), UInt32(bits & 1023))
    let size: Float =
        switch exponent {
        case 0: Float(fraction) / 16_777_216  // 2⁻²⁴ each
        case 31: fraction == 0 ? .infinity : .nan
        default: Float(bitPattern: (exponent + 112) << 23 | fraction << 13)
        }
    return bits & 0x8000 != 0 ? -size : size
}
