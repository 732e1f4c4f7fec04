// Pictures as bytes, and what becomes pixels of them.

/// 8 bits a channel, rows from the top: r, g, b, r, … Upright, and on white where it was transparent.
public struct Picture: Sendable {
    public let width: Int
    public let height: Int
    public let rgb: [UInt8]

    /// Throws EdgeError where there are no pixels, or not as many bytes as they take.
    public init(width: Int, height: Int, rgb: [UInt8]) throws {
        if width < 1 || height < 1 { throw EdgeError.image("the picture has no pixels: \(width) × \(height)") }
        if Numbers.bytes([width, height], width: 3) != rgb.count {
            throw EdgeError.image("a picture of \(width) × \(height) pixels has \(rgb.count) bytes")
        }
        self.init(checked: width, height, rgb)
    }

    init(checked width: Int, _ height: Int, _ rgb: [UInt8]) {
        (self.width, self.height, self.rgb) = (width, height, rgb)
    }

    /// Where the colours of four bytes are.
    public enum Order: Sendable { case rgbx, bgrx }

    /// Of pixels of four bytes, in rows that may be longer than their pixels: as cameras give them. Throws EdgeError.
    public init(width: Int, height: Int, order: Order, _ bytes: some RandomAccessCollection<UInt8>, bytesPerRow: Int)
        throws
    {
        let (red, blue) = order == .rgbx ? (0, 2) : (2, 0)
        if width < 1 || height < 1 || bytesPerRow < 4 * width || bytes.count < (height - 1) * bytesPerRow + 4 * width {
            throw EdgeError.image("\(bytes.count) bytes are no \(width) × \(height) pixels in rows of \(bytesPerRow)")
        }
        var rgb: [UInt8] = []
        rgb.reserveCapacity(3 * width * height)
        for y in 0..<height {
            var at = bytes.index(bytes.startIndex, offsetBy: y * bytesPerRow)
            for _ in 0..<width {
                rgb.append(bytes[bytes.index(at, offsetBy: red)])
                rgb.append(bytes[bytes.index(at, offsetBy: 1)])
                rgb.append(bytes[bytes.index(at, offsetBy: blue)])
                at = bytes.index(at, offsetBy: 4)
            }
        }
        self.init(checked: width, height, rgb)
    }

    /// Of its rows, `width` × `height` pixels from (left, top).
    func cut(_ left: Int, _ top: Int, _ width: Int, _ height: Int) -> Picture {
        if width == self.width, height == self.height { return self }
        var out: [UInt8] = []
        out.reserveCapacity(3 * width * height)
        for y in top..<top + height {
            let start = 3 * (y * self.width + left)
            out.append(contentsOf: rgb[start..<start + 3 * width])
        }
        return Picture(checked: width, height, out)
    }
}
