// Stand-in for Core Media: the declarations that the app uses, to type-check against.
// The names are Apple's.
// swift-format-ignore-file
@_exported import CoreVideo

public final class CMSampleBuffer {}
public func CMSampleBufferGetImageBuffer(_ buffer: CMSampleBuffer) -> CVImageBuffer? { fatalError() }
