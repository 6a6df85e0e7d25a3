//! When a response came in, as the kernel has it: to be answered is one thing, to be given a
//! processor to read the answer with another.

use std::{io, net::TcpStream, time::SystemTime};

/// Has the kernel note when what is received comes in, where it can.
#[cfg(target_os = "linux")]
pub(crate) fn note(stream: &TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt::ReceiveTimestampns};
    Ok(setsockopt(stream, ReceiveTimestampns, &true)?)
}

/// How many bytes were read, and when the last of them came in.
#[cfg(target_os = "linux")]
pub(crate) fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, SystemTime)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::{io::IoSliceMut, os::fd::AsRawFd, time::Duration};

    let mut room = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut buffers = [IoSliceMut::new(buffer)];
    let fd = stream.as_raw_fd();
    let message = recvmsg::<()>(fd, &mut buffers, Some(&mut room), MsgFlags::empty())?;
    let noted = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => {
            Some(SystemTime::UNIX_EPOCH + Duration::from(time))
        }
        _ => None,
    });
    Ok((message.bytes, noted.unwrap_or_else(SystemTime::now)))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn note(_: &TcpStream) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, SystemTime)> {
    let read = io::Read::read(&mut stream, buffer)?;
    Ok((read, SystemTime::now()))
}
