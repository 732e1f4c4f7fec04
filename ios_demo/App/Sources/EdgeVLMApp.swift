// The app: one window.
import AppModel
import Foundation
import SwiftUI

@main
struct EdgeVLMApp: App {
    @State private var model = DemoModel(root: EdgeVLMApp.root)

    /// Imported bundles are the user's: the system keeps what lies there.
    private static var root: URL {
        let folders = FileManager.default.urls(for: .applicationSupportDirectory, in: .userDomainMask)
        return (folders.first ?? FileManager.default.temporaryDirectory).appendingPathComponent("bundles")
    }

    var body: some Scene {
        WindowGroup {
            AskView(model: model)
        }
    }
}
