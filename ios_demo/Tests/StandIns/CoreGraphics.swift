// Stand-in for Core Graphics and its C types: the declarations that the app uses, to type-check against.
@_exported import Foundation

public typealias CFData = Data
public typealias CFString = String
public typealias CFDictionary = [String: Any]

public final class CGColorSpace {
    public static let sRGB: CFString = ""
    public init?(name: CFString) { fatalError() }
}

public enum CGImageAlphaInfo: UInt32 { case none, noneSkipLast }

public struct CGBitmapInfo {
    public init(rawValue: UInt32) { fatalError() }
}

public enum CGColorRenderingIntent { case defaultIntent }

public final class CGDataProvider {
    public init?(data: CFData) { fatalError() }
}

public final class CGImage: Sendable {
    public init?(
        width: Int, height: Int, bitsPerComponent: Int, bitsPerPixel: Int, bytesPerRow: Int, space: CGColorSpace,
        bitmapInfo: CGBitmapInfo, provider: CGDataProvider, decode: UnsafePointer<CGFloat>?, shouldInterpolate: Bool,
        intent: CGColorRenderingIntent
    ) { fatalError() }
    public var width: Int { fatalError() }
    public var height: Int { fatalError() }
}

public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) { fatalError() }
    public func draw(_ image: CGImage, in rect: CGRect) { fatalError() }
}
