"""URLs that lead, or would lead careless code, to what `[egress] private = false` closes."""

CLOSED_URLS = """
http://127.0.0.1:{port}/ http://localhost:{port}/ http://LOCALHOST:{port}/
http://127.1:{port}/ http://127.0.1:{port}/ http://2130706433:{port}/ http://0x7f000001:{port}/ http://0x7f.1:{port}/
http://0177.0.0.1:{port}/ http://017700000001:{port}/ http://127.0.0.01:{port}/ http://0:{port}/ http://0.0.0.0:{port}/
http://127.0.0.1.:{port}/ http://127.1.:{port}/ http://127.255.255.254:{port}/ http://0x7F.0x0.0x0.0x1:{port}/
http://１２７.0.0.1:{port}/ http://127。0。0。1:{port}/ http://127．0．0．1:{port}/ http://①②⑦.⓪.⓪.①:{port}/
http://localhoſt:{port}/ http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/
http://[::1]:{port}/ http://[0:0:0:0:0:0:0:1]:{port}/ http://[::ffff:127.0.0.1]:{port}/ http://[::ffff:7f00:1]:{port}/
http://[::127.0.0.1]:{port}/ http://[::7f00:1]:{port}/ http://[::]:{port}/ http://[64:ff9b::7f00:1]:{port}/
http://[2002:7f00:1::]:{port}/ http://[::ffff:0:7f00:1]:{port}/ http://[::1%25lo]:{port}/
http://example.com@127.0.0.1:{port}/ http://user:pass@127.0.0.1:{port}/ http://8.8.8.8:80@127.0.0.1:{port}/
http://127.0.0.1:{port}#@8.8.8.8/ http://127.0.0.1:{port}/?@8.8.8.8/ http://127.0.0.1:{port}\\@8.8.8.8/
http://127.0.0%2e1:{port}/ http://%31%32%37.0.0.1:{port}/ http://loc%61lhost:{port}/ http:\\\\127.0.0.1:{port}/
http:/127.0.0.1:{port}/ http:127.0.0.1:{port}/ HTTP://127.0.0.1:{port}/ http://0300.0250.1.1:{port}/
http://169.254.169.254/latest/meta-data/ http://[fd00:ec2::254]/ http://100.100.100.200/ http://168.63.129.16/
http://2852039166/ http://0xa9fea9fe/ http://[::ffff:a9fe:a9fe]/ http://metadata.google.internal/ http://metadata/
http://10.0.0.1/ http://192.168.1.1/ http://172.16.0.1/ http://100.64.0.1/ http://[fd00::1]/ http://[fe80::1]/
http://224.0.0.1/ http://255.255.255.255/ http://198.18.0.1/ http://192.0.2.1/ http://[2001:db8::1]/ http://[ff02::1]/
""".split()
