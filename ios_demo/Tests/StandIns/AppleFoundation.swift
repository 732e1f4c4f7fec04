// Stand-in for what only Apple's Foundation has, compiled with the app: the declarations that it uses.
import Foundation

extension URL {
    func startAccessingSecurityScopedResource() -> Bool { fatalError() }
    func stopAccessingSecurityScopedResource() { fatalError() }
}

extension NotificationCenter {
    func notifications(named name: Notification.Name) -> AsyncStream<Notification> { fatalError() }
}
