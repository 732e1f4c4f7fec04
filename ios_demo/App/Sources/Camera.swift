// The camera behind the phone: its newest frame as a picture.
import AVFoundation
import CoreMedia
import CoreVideo
import Foundation
import VLMCore

final class Camera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable {  // by its own queue
    let frames = Latest<Picture>()
    private let session = AVCaptureSession()
    private let queue = DispatchQueue(label: "dev.edgevlm.camera")

    /// Asks for permission the first time. Throws EdgeError.
    func start() async throws {
        guard await AVCaptureDevice.requestAccess(for: .video) else {
            throw EdgeError.usage("the camera may not be used", hint: "allow it in Settings")
        }
        guard let device = AVCaptureDevice.default(for: .video), let input = try? AVCaptureDeviceInput(device: device),
            session.canAddInput(input)
        else { throw EdgeError.usage("there is no camera") }
        let output = AVCaptureVideoDataOutput()
        output.alwaysDiscardsLateVideoFrames = true
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        output.setSampleBufferDelegate(self, queue: queue)
        session.beginConfiguration()
        session.sessionPreset = .vga640x480  // more than a vision encoder sees
        session.addInput(input)
        if session.canAddOutput(output) { session.addOutput(output) }
        output.connection(with: .video)?.videoRotationAngle = 90  // upright, as the phone is held
        session.commitConfiguration()
        queue.async { self.session.startRunning() }
    }

    func stop() {
        frames.end()
        queue.async { self.session.stopRunning() }
    }

    func captureOutput(
        _ output: AVCaptureOutput,
        didOutput sampleBuffer: CMSampleBuffer,
        from connection: AVCaptureConnection
    ) {
        guard let buffer = CMSampleBufferGetImageBuffer(sampleBuffer) else { return }
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        guard let start = CVPixelBufferGetBaseAddress(buffer) else { return }
        let (width, height) = (CVPixelBufferGetWidth(buffer), CVPixelBufferGetHeight(buffer))
        let row = CVPixelBufferGetBytesPerRow(buffer)
        let bytes = UnsafeRawBufferPointer(start: start, count: row * height)
        if let picture = try? Picture(width: width, height: height, order: .bgrx, bytes, bytesPerRow: row) {
            frames.put(picture)
        }
    }
}
