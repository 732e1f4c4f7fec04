// Pictures as Apple's systems decode them: upright, in sRGB, on white where they are transparent.
#if canImport(ImageIO)
    import CoreGraphics
    import Foundation
    import ImageIO

    /// `most`: a longer edge is made as long while it is decoded. Throws EdgeError on what the system cannot decode.
    public func decodedPicture(_ data: Data, _ name: String, most: Int = 8192) throws -> Picture {
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,
            kCGImageSourceCreateThumbnailWithTransform: true,
            kCGImageSourceThumbnailMaxPixelSize: most,
        ]
        guard let source = CGImageSourceCreateWithData(data as CFData, nil),
            let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary)
        else { throw EdgeError.image("\(name) is no picture that this system can decode") }
        var rgbx = [UInt8](repeating: 255, count: 4 * image.width * image.height)
        let drawn = rgbx.withUnsafeMutableBytes { bytes -> Bool in
            guard let space = CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: bytes.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                    bytesPerRow: 4 * image.width, space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return true
        }
        if !drawn { throw EdgeError.image("there is no memory for \(name)", hint: "a smaller picture") }
        return try Picture(width: image.width, height: image.height, order: .rgbx, rgbx, bytesPerRow: 4 * image.width)
    }
#endif
