// Stand-in for PhotosUI: the declarations that the app uses, to type-check against.
import Foundation
import SwiftUI

public protocol Transferable {}
extension Data: Transferable {}

public struct PHPickerFilter {
    public static var images: PHPickerFilter { fatalError() }
}

public struct PhotosPickerItem: Equatable, Sendable {
    public func loadTransferable<T: Transferable>(type: T.Type) async throws -> T? { fatalError() }
}

public struct PhotosPicker: View {
    public init(_ title: String, selection: Binding<PhotosPickerItem?>, matching filter: PHPickerFilter?) {
        fatalError()
    }
    public var body: Never { fatalError() }
}
