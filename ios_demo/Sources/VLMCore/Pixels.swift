// An image becomes the pixels that the model was trained on, to the last bit what Pillow and NumPy make of it.

private let maxSide = 8192  // a longer image is shrunk before it is padded: the square would take gigabytes
private let maxRatio = 16  // a longer image loses its ends before it is cropped

/// float32 `[1, 3, size, size]`.
public func pixels(_ picture: Picture, _ spec: ImageSpec) -> [Float] {
    let square =
        switch spec.fit {
        case .pad: padded(picture, spec)
        case .crop: cropped(picture, spec)
        case .stretch: stretched(picture, spec)
        case .longEdge: stretched(scaled(picture, spec.longEdge ?? spec.size, spec.resample), spec)
        }
    return normalised(square, spec)
}

/// Of an image of `size` × `size`.
func normalised(_ square: Picture, _ spec: ImageSpec) -> [Float] {
    let area = spec.size * spec.size
    return [Float](unsafeUninitializedCapacity: 3 * area) { out, made in
        square.rgb.withUnsafeBufferPointer { rgb in
            for channel in 0..<3 {
                let table = (0..<256).map { Float((Double($0) / 255 - spec.mean[channel]) / spec.std[channel]) }
                for place in 0..<area { out[channel * area + place] = table[Int(rgb[3 * place + channel])] }
            }
        }
        made = 3 * area
    }
}

/// Equal for equal pixels: what an image's embeddings are remembered by.
func digest(_ pixels: [Float]) -> String { pixels.withUnsafeBytes { Sha256.of($0) } }

private func padded(_ picture: Picture, _ spec: ImageSpec) -> Picture {
    let longest = max(picture.width, picture.height)
    func shrunk(_ edge: Int) -> Int {
        max(1, Int((Double(edge) * Double(maxSide) / Double(longest)).rounded(.toNearestOrEven)))
    }
    let held =
        longest <= maxSide ? picture : resized(picture, shrunk(picture.width), shrunk(picture.height), spec.resample)
    let side = max(held.width, held.height)
    if held.width == held.height { return resized(held, spec.size, spec.size, spec.resample) }
    let (left, top) = ((side - held.width) / 2, (side - held.height) / 2)
    let line = [[UInt8]](repeating: spec.background, count: side).flatMap { $0 }
    var square: [UInt8] = []
    square.reserveCapacity(3 * side * side)
    for y in 0..<side {
        if y < top || y >= top + held.height {
            square.append(contentsOf: line)
        } else {
            let start = 3 * (y - top) * held.width
            square.append(contentsOf: line.prefix(3 * left))
            square.append(contentsOf: held.rgb[start..<start + 3 * held.width])
            square.append(contentsOf: line.dropFirst(3 * (left + held.width)))
        }
    }
    return resized(Picture(checked: side, side, square), spec.size, spec.size, spec.resample)
}

private func cropped(_ picture: Picture, _ spec: ImageSpec) -> Picture {
    let cutX = max(0, (picture.width - maxRatio * picture.height) / 2)
    let cutY = max(0, (picture.height - maxRatio * picture.width) / 2)
    let held = picture.cut(cutX, cutY, picture.width - 2 * cutX, picture.height - 2 * cutY)
    let short = Double(min(held.width, held.height))
    let width = Int(Double(spec.size) * Double(held.width) / short)
    let height = Int(Double(spec.size) * Double(held.height) / short)
    let whole = resized(held, width, height, spec.resample)
    return whole.cut((width - spec.size) / 2, (height - spec.size) / 2, spec.size, spec.size)
}

private func stretched(_ picture: Picture, _ spec: ImageSpec) -> Picture {
    // Rows are resized first: where they grow, all of them together would take gigabytes.
    let tall = picture.height > maxSide && picture.width < spec.size
    let held = tall ? resized(picture, picture.width, spec.size, spec.resample) : picture
    return resized(held, spec.size, spec.size, spec.resample)
}

private func scaled(_ picture: Picture, _ long: Int, _ how: ImageSpec.Resample) -> Picture {
    let (width, height) = longEdge(picture.width, picture.height, long)
    return resized(picture, width, height, how)
}

/// With a longer edge of `long`, and a shorter one that is even.
func longEdge(_ width: Int, _ height: Int, _ long: Int) -> (width: Int, height: Int) {
    let ratio = Double(width) / Double(height)
    let wide = width >= height
    let rounded = Int(wide ? Double(long) / ratio : Double(long) * ratio)
    let short = max(1, rounded + rounded % 2)
    return wide ? (long, short) : (short, long)
}
