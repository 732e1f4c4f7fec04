// Resizing as Pillow does it: rows, then columns, each rounded to 8 bits, with weights in fixed point.
import Foundation

private let fraction = 22  // bits of a weight

func resized(_ picture: Picture, _ width: Int, _ height: Int, _ how: ImageSpec.Resample) -> Picture {
    var rgb = picture.rgb
    if width != picture.width {
        rgb = Axis(picture.width, width, how)
            .along(rgb, lines: picture.height, step: 3, line: 3 * picture.width, newLine: 3 * width)
    }
    if height != picture.height {
        rgb = Axis(picture.height, height, how).along(rgb, lines: width, step: 3 * width, line: 3, newLine: 3)
    }
    return Picture(checked: width, height, rgb)
}

/// One axis of old pixels to new ones: which inputs each output looks at, and their weights.
private struct Axis {
    private var first: [Int] = []
    private var weights: [[Int32]] = []

    init(_ old: Int, _ new: Int, _ how: ImageSpec.Resample) {
        let scale = Double(old) / Double(new)
        let stretch = max(scale, 1)
        let support = how.support * stretch
        for x in 0..<new {
            let center = (Double(x) + 0.5) * scale
            let start = max(Int(center - support + 0.5), 0)
            let count = min(Int(center + support + 0.5), old) - start
            let raw = (0..<count).map { kernel(how, (Double($0 + start) - center + 0.5) * (1 / stretch)) }
            let sum = raw.reduce(0, +)
            first.append(start)
            weights.append(
                raw.map { number in
                    let weight = (sum != 0 ? number / sum : number) * Double(1 << fraction)
                    return Int32(weight < 0 ? weight - 0.5 : weight + 0.5)
                })
        }
    }

    /// `step` bytes to the next pixel of the axis, `line` to the next line, `newLine` in the result.
    func along(_ from: [UInt8], lines: Int, step: Int, line: Int, newLine: Int) -> [UInt8] {
        let size = 3 * first.count * lines
        return [UInt8](unsafeUninitializedCapacity: size) { out, made in
            from.withUnsafeBufferPointer { from in
                for x in first.indices {
                    weights[x].withUnsafeBufferPointer { own in
                        for y in 0..<lines {
                            for channel in 0..<3 {
                                var total: Int32 = 1 << (fraction - 1)
                                var at = first[x] * step + y * line + channel
                                for weight in own {
                                    total &+= Int32(from[at]) &* weight
                                    at += step
                                }
                                out[x * step + y * newLine + channel] = UInt8(clamping: total >> Int32(fraction))
                            }
                        }
                    }
                }
            }
            made = size
        }
    }
}

extension ImageSpec.Resample {
    /// Pixels to either side that the kernel looks at.
    fileprivate var support: Double {
        switch self {
        case .bilinear: 1
        case .bicubic: 2
        case .lanczos: 3
        }
    }
}

private func sinc(_ x: Double) -> Double { x == 0 ? 1 : sin(x * .pi) / (x * .pi) }

private func kernel(_ how: ImageSpec.Resample, _ at: Double) -> Double {
    let x = abs(at)
    if how == .bilinear { return x < 1 ? 1 - x : 0 }
    if how == .lanczos { return x < 3 ? sinc(x) * sinc(x / 3) : 0 }
    if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0
}
