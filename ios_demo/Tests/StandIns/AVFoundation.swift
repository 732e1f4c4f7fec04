// Stand-in for AVFoundation: the declarations that the app uses, to type-check against.
@_exported import CoreMedia

public struct AVMediaType: Sendable {
    public static let video = AVMediaType()
}

public final class AVCaptureDevice: NSObject {
    public class func requestAccess(for mediaType: AVMediaType) async -> Bool { fatalError() }
    public class func `default`(for mediaType: AVMediaType) -> AVCaptureDevice? { fatalError() }
}

open class AVCaptureInput: NSObject {}

public final class AVCaptureDeviceInput: AVCaptureInput {
    public init(device: AVCaptureDevice) throws { fatalError() }
}

public final class AVCaptureConnection: NSObject {
    public var videoRotationAngle: CGFloat = 0
}

open class AVCaptureOutput: NSObject {
    open func connection(with mediaType: AVMediaType) -> AVCaptureConnection? { fatalError() }
}

public protocol AVCaptureVideoDataOutputSampleBufferDelegate: NSObjectProtocol {
    func captureOutput(
        _ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection)
}

public final class AVCaptureVideoDataOutput: AVCaptureOutput {
    public var alwaysDiscardsLateVideoFrames = true
    public var videoSettings: [String: Any]!
    public func setSampleBufferDelegate(
        _ delegate: (any AVCaptureVideoDataOutputSampleBufferDelegate)?, queue: DispatchQueue?
    ) { fatalError() }
}

public final class AVCaptureSession: NSObject {
    public enum Preset { case vga640x480 }
    public var sessionPreset = Preset.vga640x480
    public func canAddInput(_ input: AVCaptureInput) -> Bool { fatalError() }
    public func addInput(_ input: AVCaptureInput) { fatalError() }
    public func canAddOutput(_ output: AVCaptureOutput) -> Bool { fatalError() }
    public func addOutput(_ output: AVCaptureOutput) { fatalError() }
    public func beginConfiguration() { fatalError() }
    public func commitConfiguration() { fatalError() }
    public func startRunning() { fatalError() }
    public func stopRunning() { fatalError() }
}
