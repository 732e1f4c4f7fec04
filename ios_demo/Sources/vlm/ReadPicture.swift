// Reads a picture from a file: what the system decodes on a Mac; PPM, which needs no decoder, elsewhere too.
import Foundation
import VLMCore

#if canImport(ImageIO)
    import CoreGraphics
    import ImageIO
#endif

/// Throws EdgeError.
func readPicture(_ file: URL) throws -> Picture {
    guard let data = try? Data(contentsOf: file) else {
        throw EdgeError.image("\(file.lastPathComponent) cannot be read")
    }
    if data.starts(with: "P6".utf8) { return try ppm(file.lastPathComponent, Array(data)) }
    #if canImport(ImageIO)
        return try decodedPicture(data, file.lastPathComponent)
    #else
        throw EdgeError.image(
            "\(file.lastPathComponent) is no PPM, the only kind of picture that is read without Apple's decoders",
            hint: "python -c \"from PIL import Image; Image.open('IN').convert('RGB').save('OUT.ppm')\"")
    #endif
}

/// Binary PPM: `P6`, width, height and 255 with white space between, and bytes after one more.
private func ppm(_ name: String, _ bytes: [UInt8]) throws -> Picture {
    var fields: [Int] = []
    var at = 2
    while fields.count < 3, at < bytes.count {
        while at < bytes.count, bytes[at] <= 0x20 { at += 1 }
        let start = at
        while at < bytes.count, bytes[at] > 0x20 { at += 1 }
        fields.append(Int(String(decoding: bytes[start..<at], as: UTF8.self)) ?? -1)
    }
    guard fields.count == 3, fields[2] == 255, at < bytes.count else {
        throw EdgeError.image("\(name) is no PPM of 8 bits")
    }
    return try Picture(width: fields[0], height: fields[1], rgb: Array(bytes[(at + 1)...]))
}
