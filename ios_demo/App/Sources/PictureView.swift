// A picture on the screen.
import CoreGraphics
import Foundation
import SwiftUI
import VLMCore

struct PictureView: View {
    let picture: Picture?

    var body: some View {
        if let image = picture.flatMap(drawable) {
            Image(decorative: image, scale: 1).resizable().scaledToFit()
        } else {
            Text("Choose a photo, or take one.").foregroundStyle(.secondary)
        }
    }

    private func drawable(_ picture: Picture) -> CGImage? {
        guard let provider = CGDataProvider(data: Data(picture.rgb) as CFData),
            let space = CGColorSpace(name: CGColorSpace.sRGB)
        else { return nil }
        return CGImage(
            width: picture.width, height: picture.height, bitsPerComponent: 8, bitsPerPixel: 24,
            bytesPerRow: 3 * picture.width, space: space, bitmapInfo: CGBitmapInfo(rawValue: 0), provider: provider,
            decode: nil, shouldInterpolate: true, intent: .defaultIntent)
    }
}
