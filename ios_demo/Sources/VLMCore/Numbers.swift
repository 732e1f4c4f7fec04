// Numbers as files hold them, little-endian: arrays of golden samples, and NumPy's .npy format.
import Foundation

/// An array in C order, within `data` from `offset` on.
struct Numbers {
    let dtype: String
    let shape: [Int]
    let data: Data
    let offset: Int

    var count: Int { shape.reduce(1, *) }

    func values<T>(_: T.Type) -> [T] {
        let (count, from) = (count, offset)
        return [T](unsafeUninitializedCapacity: count) { out, made in
            data.withUnsafeBytes { bytes in
                let own = UnsafeRawBufferPointer(rebasing: bytes[from..<from + count * MemoryLayout<T>.stride])
                UnsafeMutableRawBufferPointer(out).copyMemory(from: own)
            }
            made = count
        }
    }

    /// Bytes of an array, or nil where they are more than a file can have.
    static func bytes(_ shape: [Int], width: Int) -> Int? {
        var product = width
        for size in shape {
            let (next, over) = product.multipliedReportingOverflow(by: size)
            if over || size < 0 { return nil }
            product = next
        }
        return product
    }
}

enum Npy {
    private static let widths = ["|i1": 1, "|u1": 1, "<f2": 2, "<f4": 4, "<i4": 4]

    /// Throws EdgeError on what is no such array, or holds more or less than its shape says.
    static func read(_ name: String, _ data: Data) throws -> Numbers {
        func damaged(_ why: String) -> EdgeError { .bundle("\(name) is damaged: \(why)") }
        let head = Array(data.prefix(12))
        if head.count < 12 { throw damaged("it ends early") }
        if !head.starts(with: [0x93] + Array("NUMPY".utf8)) { throw damaged("it is no .npy file") }
        let long = head[6] != 1
        let length = (long ? head[8..<12] : head[8..<10]).reversed().reduce(0) { $0 << 8 | Int($1) }
        let start = (long ? 12 : 10) + length
        if start > data.count || length > 65_535 { throw damaged("a header of \(length) bytes") }
        let header = String(decoding: data.prefix(start).dropFirst(long ? 12 : 10), as: UTF8.self)
        guard let dtype = header.firstMatch(of: /'descr': '([^']+)'/)?.1, let width = widths[String(dtype)],
            let sizes = header.firstMatch(of: /'shape': \(([0-9, ]*)\)/)?.1, header.contains("'fortran_order': False")
        else { throw damaged("its header is \(header.prefix(200))") }
        let shape = sizes.split(whereSeparator: { $0 == "," || $0 == " " }).map { Int($0) ?? -1 }
        guard Numbers.bytes(shape, width: width) == data.count - start else {
            throw damaged("\(dtype) \(shape) in \(data.count - start) bytes")
        }
        return Numbers(dtype: String(dtype), shape: shape, data: data, offset: start)
    }
}
